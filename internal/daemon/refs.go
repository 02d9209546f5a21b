package daemon

import (
	"context"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// ExportRefs implements engineapi.Refs.
func (e *engine) ExportRefs(context.Context) (engineapi.Repositories, error) {
	repos := map[string]map[string]string{}
	for name, i := range e.images.Names() {
		repo := imagedb.Familiar(imagedb.Repository(name))
		if repos[repo] == nil {
			repos[repo] = map[string]string{}
		}
		repos[repo][imagedb.Familiar(name)] = string(i)
	}
	return engineapi.Repositories{Repositories: repos}, nil
}

// ImportRefs implements engineapi.Refs. An image that is not here, as one of
// docker before 1.10, whose IDs are no digests, is no error but a skipped name.
func (e *engine) ImportRefs(_ context.Context, r engineapi.Repositories, force bool) (engineapi.RefsReport, error) {
	if r.Repositories == nil {
		return engineapi.RefsReport{}, fault.New(fault.Invalid, "this is no repositories.json: there is no object Repositories in it")
	}
	rep := engineapi.RefsReport{Added: []string{}, Skipped: []engineapi.SkippedName{}}
	skip := func(name string, why error) {
		rep.Skipped = append(rep.Skipped, engineapi.SkippedName{Name: name, Why: why.Error()})
	}
	want := map[string]id.ImageID{}
	for repo, names := range r.Repositories {
		for key, to := range names {
			name, err := importedName(repo, key)
			if err != nil {
				skip(key, err)
				continue
			}
			i, err := id.ParseImageID("sha256:" + strings.TrimPrefix(to, "sha256:"))
			if err != nil {
				skip(imagedb.Familiar(name), fault.New(fault.Invalid, "image ID: %w", err))
				continue
			}
			want[name] = i
		}
	}
	e.names.Lock()
	defer e.names.Unlock()
	tagged, failed, err := e.images.TagAll(want, force)
	for name, why := range failed {
		skip(imagedb.Familiar(name), why)
	}
	for _, name := range tagged {
		familiar := imagedb.Familiar(name)
		rep.Added = append(rep.Added, familiar)
		e.event(imageEvents, "tag", string(want[name]), "name", familiar)
	}
	slices.SortFunc(rep.Skipped, func(a, b engineapi.SkippedName) int { return strings.Compare(a.Name, b.Name) })
	return rep, err
}

// importedName returns the full name of an entry of a repositories.json: from
// 1.10 on its key is a familiar reference, before it is a tag or a digest.
func importedName(repo, key string) (string, error) {
	full := key
	switch {
	case strings.HasPrefix(key, "sha256:") && repo != "sha256":
		full = repo + "@" + key
	case !strings.ContainsAny(key, ":@/"):
		full = repo + ":" + key
	}
	ref, err := fetch.ParseReference(full)
	switch {
	case err != nil:
		return "", err
	case ref.Local() || ref.FamiliarName() != repo && ref.Name() != repo:
		return "", fault.New(fault.Invalid, "it is no name in repository %q", repo)
	}
	return ref.String(), nil
}
