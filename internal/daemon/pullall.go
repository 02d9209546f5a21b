package daemon

import (
	"context"
	"regexp"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// artifactTag matches the tags by which registries without a referrers API keep
// what belongs to an image: signatures, indexes and the like, but no images.
var artifactTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\..*)?$`)

// pullAll pulls every tag of a repository, in turn; the first that fails ends
// it. What has come by then stays, and is up to date the next time. The result
// names the repository, and no digest.
func (e *engine) pullAll(ctx context.Context, req engineapi.PullRequest, report func(engineapi.Progress)) (engineapi.PullResult, error) {
	ref, err := inRegistry(req.Reference)
	if err != nil {
		return engineapi.PullResult{}, err
	}
	if tagged(req.Reference) {
		return engineapi.PullResult{}, errAllTags
	}
	tags, err := e.origins.client(req.Registry).Tags(ctx, ref)
	if err != nil {
		return engineapi.PullResult{}, err
	}
	res := engineapi.PullResult{Reference: ref.FamiliarName(), UpToDate: true}
	pulled := 0
	for _, t := range tags {
		if artifactTag.MatchString(t) {
			continue
		}
		at, err := fetch.ParseReference(ref.Name() + ":" + t)
		if err != nil {
			return res, err
		}
		one := req
		one.AllTags = false
		r, err := e.pull(ctx, at, one, true, report)
		if err != nil {
			return res, err
		}
		report(engineapi.Progress{Status: "Digest: " + string(r.Digest)})
		res.ImageID = r.ImageID
		res.UpToDate = res.UpToDate && r.UpToDate
		pulled++
	}
	if pulled == 0 {
		return res, fault.New(fault.NotFound, "repository %s has no tags", ref.FamiliarName())
	}
	return res, nil
}
