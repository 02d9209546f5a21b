package daemon

import (
	"context"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// Search implements engineapi.Registries.
func (e *engine) Search(ctx context.Context, req engineapi.SearchRequest) ([]engineapi.SearchResult, error) {
	return nil, fault.New(fault.Failed, "not built yet")
}

// Tags implements engineapi.Registries.
func (e *engine) Tags(ctx context.Context, repository string, r engineapi.RegistryOptions) ([]string, error) {
	return nil, fault.New(fault.Failed, "not built yet")
}

// Login implements engineapi.Registries.
func (e *engine) Login(ctx context.Context, req engineapi.LoginRequest) (engineapi.LoginResult, error) {
	return engineapi.LoginResult{}, fault.New(fault.Failed, "not built yet")
}

// Manifest implements engineapi.Registries.
func (e *engine) Manifest(ctx context.Context, name string, r engineapi.RegistryOptions) (engineapi.RegistryManifest, error) {
	return engineapi.RegistryManifest{}, fault.New(fault.Failed, "not built yet")
}
