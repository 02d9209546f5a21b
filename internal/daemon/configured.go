package daemon

import (
	"context"

	"github.com/imgfs/imgfs/internal/engineapi"
)

// Configured implements engineapi.Registries.
func (e *engine) Configured(context.Context) []engineapi.InfoIndex {
	var out []engineapi.InfoIndex
	for _, c := range e.fetchOptions(engineapi.RegistryOptions{}).Configured() {
		i := engineapi.InfoIndex{Name: c.Host, Mirrors: c.Mirrors, Secure: c.Secure, Official: c.Host == "docker.io"}
		if c.Err != nil {
			i.Problem = c.Err.Error()
		}
		out = append(out, i)
	}
	return out
}
