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

const algorithm = "sha256:"

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
// to image i. A tag moves; a digest never does: fault.Conflict, with docker's
// text, if it points elsewhere. fault.NotFound if there is no such image.
func (s *Store) Tag(name string, i id.ImageID) error { return s.tag(name, i, true) }

// TagNew is Tag for a tag that is not to move either.
func (s *Store) TagNew(name string, i id.ImageID) error { return s.tag(name, i, false) }

func (s *Store) tag(name string, i id.ImageID, move bool) error {
	_, failed, err := s.TagAll(map[string]id.ImageID{name: i}, move)
	if err == nil {
		err = failed[name]
	}
	return err
}

// TagAll is Tag, or TagNew unless move is set, for many names. It returns, in
// full form and sorted, those that came or moved, and why others did not, by
// what was passed. err is the disk's; what was to change then has not, or in
// part.
func (s *Store) TagAll(names map[string]id.ImageID, move bool) (tagged []string, failed map[string]error, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	failed = map[string]error{}
	to := map[string]id.ImageID{}
	now := time.Now().UTC()
	changes := map[string][]byte{}
	for name, i := range names {
		ref, err := parse(name)
		if err == nil {
			err = s.mayPoint(ref, i, move)
		}
		if err != nil {
			failed[name] = err
			continue
		}
		full := ref.String()
		if s.names[full] == i {
			continue
		}
		to[full] = i
		changes[nameKey+full] = []byte(i.Hex())
		later := s.copyOf(i)
		later.Tagged = now
		if !later.lost {
			changes[imageKey+i.Hex()] = record(&later)
		}
	}
	if len(to) == 0 {
		return nil, failed, nil
	}
	if err := s.commit(changes); err != nil {
		return nil, failed, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, i := range to {
		s.forget(name)
		delete(s.damaged, name)
		s.names[name] = i
		e := s.images[i]
		e.Tagged = now
		at, _ := slices.BinarySearch(e.names, name)
		e.names = slices.Insert(slices.Clip(e.names), at, name)
		tagged = append(tagged, name)
	}
	slices.Sort(tagged)
	return tagged, failed, nil
}

// mayPoint says why ref may not come to point to image i.
//
// Preconditions: s.change is held.
func (s *Store) mayPoint(ref reference.Named, i id.ImageID, move bool) error {
	if s.images[i] == nil {
		return noSuchImage(string(i))
	}
	at, ok := s.names[ref.String()]
	if !ok || at == i {
		return nil
	}
	if d, ok := ref.(reference.Digested); ok {
		return fault.New(fault.Conflict, "Cannot overwrite digest %s", d.Digest())
	}
	if !move {
		return fault.New(fault.Conflict, "Conflict: Tag %s is already set to image %s, if you want to replace it, please use -f option", reference.FamiliarString(ref), at)
	}
	return nil
}

// forget takes a name away from the image that it points to, if there is one.
//
// Preconditions: s.change and s.mu are held.
func (s *Store) forget(name string) {
	i, ok := s.names[name]
	if !ok {
		return
	}
	delete(s.names, name)
	e := s.images[i]
	e.names = slices.DeleteFunc(slices.Clone(e.names), func(n string) bool { return n == name })
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
	s.change.Lock()
	defer s.change.Unlock()
	i, ok := s.names[ref.String()]
	if _, damaged := s.damaged[ref.String()]; !ok && !damaged {
		return nil, fault.New(fault.NotFound, "reference does not exist: %s", reference.FamiliarString(ref))
	}
	removed = []string{ref.String()}
	if _, digest := ref.(reference.Digested); ok && !digest {
		removed = append(removed, orphans(ref, s.images[i].names)...)
	}
	changes := map[string][]byte{}
	for _, n := range removed {
		changes[nameKey+n] = nil
	}
	if err := s.commit(changes); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range removed {
		s.forget(n)
		delete(s.damaged, n)
	}
	return removed, nil
}

// orphans returns which of an image's names are digest references of tag's
// repository, if tag is its only tag there.
func orphans(tag reference.Named, names []string) []string {
	var digests []string
	for _, n := range names {
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
	if e := s.images[i]; e != nil {
		return slices.Clone(e.names)
	}
	return nil
}

// ReferencesByName returns the names in a repository, given in full without
// tag or digest, sorted.
func (s *Store) ReferencesByName(repository string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for n := range s.names {
		if inRepository(n, repository) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// inRepository reports whether a full name is of a repository.
func inRepository(name, repository string) bool {
	rest, ok := strings.CutPrefix(name, repository)
	return ok && rest != "" && (rest[0] == ':' || rest[0] == '@')
}

// ByDigest returns the images that came as what a digest names, manifest or
// index, and have a name in the repository, given in full: of an index one for
// each platform, though its digest names only the first that came.
func (s *Store) ByDigest(repository string, d id.Blob) []id.ImageID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []id.ImageID
	for _, e := range s.order {
		of := func(name string) bool { return inRepository(name, repository) }
		if (e.Digest == d || e.ManifestDigest == d) && slices.ContainsFunc(e.names, of) {
			list = append(list, e.ID)
		}
	}
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
	if slices.ContainsFunc(s.images[i].names, func(n string) bool { return inRepository(n, ref.Name()) }) {
		return i, true
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
	hex := strings.TrimPrefix(prefix, algorithm)
	if hex == "" {
		return "", noSuchImage(prefix)
	}
	from, _ := s.place(id.ImageID(algorithm + hex))
	var found []id.ImageID
	for _, e := range s.order[from:] {
		if !strings.HasPrefix(e.ID.Hex(), hex) {
			break
		}
		found = append(found, e.ID)
	}
	switch len(found) {
	case 0:
		return "", noSuchImage(prefix)
	case 1:
		return found[0], nil
	}
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

// Familiar returns a full name in the form users type: ubuntu:14.04 of
// docker.io/library/ubuntu:14.04.
func Familiar(name string) string {
	path, ok := strings.CutPrefix(name, "docker.io/")
	if !ok {
		return name
	}
	if official, ok := strings.CutPrefix(path, "library/"); ok && !strings.Contains(official, "/") {
		return official
	}
	return path
}

// Repository returns a full name without its tag or digest.
func Repository(name string) string {
	if repo, _, ok := strings.Cut(name, "@"); ok {
		return repo
	}
	return name[:max(0, strings.LastIndexByte(name, ':'))]
}
