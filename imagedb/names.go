package imagedb

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// noSuchImage has docker's text.
func noSuchImage(name string) error { return fault.New(fault.NotFound, "No such image: %s", name) }

// parse reads a name that must be complete: a tag or a digest, not both.
func parse(name string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fault.New(fault.Invalid, "Error parsing reference: %q is not a valid repository/tag: %w", name, err)
	}
	_, tag := ref.(reference.Tagged)
	_, digest := ref.(reference.Digested)
	switch {
	case tag && digest:
		return nil, fault.New(fault.Invalid, "refusing to create a tag with a digest reference")
	case !tag && !digest:
		return nil, fault.New(fault.Invalid, "name %q has neither tag nor digest", name)
	case reference.FamiliarName(ref) == "sha256":
		return nil, fault.New(fault.Invalid, "refusing to create an ambiguous tag using digest algorithm as name")
	}
	return ref, nil
}

// Tag makes name, a tag or a digest reference in full or familiar form, point
// to image i. A name moves, also one by digest, which the caller has proven:
// the digest of an index is that of an image for each of its platforms.
// fault.NotFound if there is no such image.
func (s *Store) Tag(name string, i id.ImageID) error {
	ref, err := parse(name)
	if err != nil {
		return err
	}
	name = ref.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[i]
	if e == nil {
		return noSuchImage(string(i))
	}
	if s.names[name] == i {
		return nil
	}
	img := e.Image
	img.Tagged = time.Now().UTC()
	if err := s.commitLocked(map[string][]byte{
		nameKey + name:     []byte(i.Hex()),
		imageKey + i.Hex(): record(&img),
	}); err != nil {
		return err
	}
	s.names[name] = i
	e.Tagged = img.Tagged
	return nil
}

// Untag removes name, which may be in full or familiar form. With the last tag
// that a repository has on the image go the repository's digest references to
// it. It returns all that went, name first. fault.NotFound if there is no such
// name.
func (s *Store) Untag(name string) (removed []string, err error) {
	ref, err := parse(name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.names[ref.String()]
	if !ok {
		return nil, fault.New(fault.NotFound, "reference does not exist: %s", reference.FamiliarString(ref))
	}
	removed = []string{ref.String()}
	if _, digest := ref.(reference.Digested); !digest {
		removed = append(removed, s.orphansLocked(ref, i)...)
	}
	changes := map[string][]byte{}
	for _, n := range removed {
		changes[nameKey+n] = nil
	}
	if err := s.commitLocked(changes); err != nil {
		return nil, err
	}
	for _, n := range removed {
		delete(s.names, n)
	}
	return removed, nil
}

// orphansLocked returns the digest references of tag's repository to i, if tag
// is its only tag there.
//
// Preconditions: s.mu is held.
func (s *Store) orphansLocked(tag reference.Named, i id.ImageID) []string {
	var digests []string
	for _, n := range s.referencesLocked(i) {
		rest, same := strings.CutPrefix(n, tag.Name())
		switch {
		case !same || n == tag.String():
		case strings.HasPrefix(rest, "@"):
			digests = append(digests, n)
		case strings.HasPrefix(rest, ":"):
			return nil
		}
	}
	return digests
}

// Lookup returns the image that a name points to; fault.NotFound if none does.
// Shortened names and IDs are [Store.Resolve]'s.
func (s *Store) Lookup(name string) (id.ImageID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.names[name]; ok {
		return i, nil
	}
	return "", noSuchImage(name)
}

// References returns the names that point to an image, sorted.
func (s *Store) References(i id.ImageID) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.referencesLocked(i)
}

// referencesLocked is References.
//
// Preconditions: s.mu is held.
func (s *Store) referencesLocked(i id.ImageID) []string {
	var list []string
	for n, to := range s.names {
		if to == i {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// Names returns all names and what they point to.
func (s *Store) Names() map[string]id.ImageID {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[string]id.ImageID, len(s.names))
	for n, i := range s.names {
		m[n] = i
	}
	return m
}

// Resolve returns the image that a user means by s, tried in docker's order:
//
//	an ID          sha256:<64 hex> or 64 hex
//	a name         ubuntu, ubuntu:14.04, ubuntu@sha256:…, the tag being "latest" if there is none
//	repo:shortid   the start of an ID, of an image that the repository has a name for
//	an ID's start  with or without "sha256:"
//
// fault.NotFound if it is none of them, fault.Conflict if the last fits several.
func (s *Store) Resolve(name string) (id.ImageID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, err := id.ParseImageID("sha256:" + strings.TrimPrefix(name, "sha256:")); err == nil {
		if s.images[i] == nil {
			return "", noSuchImage(name)
		}
		return i, nil
	}
	if ref, err := reference.ParseNormalizedNamed(name); err == nil {
		if i, ok := s.namedLocked(ref); ok {
			return i, nil
		}
	}
	return s.searchLocked(name)
}

// namedLocked resolves a name and repo:shortid.
//
// Preconditions: s.mu is held.
func (s *Store) namedLocked(ref reference.Named) (id.ImageID, bool) {
	full := reference.TagNameOnly(ref)
	if d, ok := ref.(reference.Digested); ok { // name:tag@digest means the digest
		if c, err := reference.WithDigest(reference.TrimNamed(ref), d.Digest()); err == nil {
			full = c
		}
	}
	if i, ok := s.names[full.String()]; ok {
		return i, true
	}
	t, ok := ref.(reference.Tagged)
	if !ok {
		return "", false
	}
	i, err := s.searchLocked(t.Tag())
	if err != nil {
		return "", false
	}
	for _, n := range s.referencesLocked(i) {
		if strings.HasPrefix(n, ref.Name()+":") || strings.HasPrefix(n, ref.Name()+"@") {
			return i, true
		}
	}
	return "", false
}

// Search returns the image whose ID begins with prefix, in hexadecimal, with
// or without "sha256:". fault.NotFound if there is none, fault.Conflict, naming
// the candidates, if there are several.
func (s *Store) Search(prefix string) (id.ImageID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.searchLocked(prefix)
}

// searchLocked is Search.
//
// Preconditions: s.mu is held.
func (s *Store) searchLocked(prefix string) (id.ImageID, error) {
	hex := strings.TrimPrefix(prefix, "sha256:")
	var found []id.ImageID
	if hex != "" {
		for i := range s.images {
			if strings.HasPrefix(i.Hex(), hex) {
				found = append(found, i)
			}
		}
	}
	switch len(found) {
	case 0:
		return "", noSuchImage(prefix)
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	return "", fault.WithHint(fault.New(fault.Conflict, "ambiguous id prefix %q: matches %s", prefix, candidates(found)), "give more digits")
}

// maxCandidates bounds the list in an error's text.
const maxCandidates = 5

func candidates(ids []id.ImageID) string {
	var b strings.Builder
	for n, i := range ids[:min(len(ids), maxCandidates)] {
		if n > 0 {
			b.WriteString(", ")
		}
		b.WriteString(i.Short() + "…")
	}
	if len(ids) > maxCandidates {
		b.WriteString(", …")
	}
	fmt.Fprintf(&b, " (%d)", len(ids))
	return b.String()
}

// TagNew is [Store.Tag] for a name that is not to move: fault.Conflict, with
// docker's text, if it points elsewhere.
func (s *Store) TagNew(name string, i id.ImageID) error {
	ref, err := parse(name)
	if err != nil {
		return err
	}
	if at, err := s.Lookup(ref.String()); err == nil && at != i {
		return fault.New(fault.Conflict, "Conflict: Tag %s is already set to image %s, if you want to replace it, please use -f option", reference.FamiliarString(ref), at)
	}
	return s.Tag(name, i)
}
