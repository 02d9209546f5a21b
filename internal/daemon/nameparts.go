package daemon

import "github.com/imgfs/imgfs/fetch"

// NameParts are the parts of an image's name, "" where it has none.
type NameParts struct {
	Name       string // as it was given
	Reference  string // in full, with all that was left out: docker.io/library/ubuntu:latest
	Familiar   string // as it is shown: ubuntu:latest
	Transport  string // registry, oci, oci-archive or docker-archive
	Registry   string // host[:port]
	Path       string // of the repository in the registry: library/ubuntu
	Repository string // in full: docker.io/library/ubuntu
	Tag        string
	Digest     string
	File       string // or directory, of images in files
}

// ParseName takes a name apart, as a pull does. Errors are of kind Invalid, with
// docker's texts.
func ParseName(name string) (NameParts, error) {
	r, err := fetch.ParseReference(name)
	if err != nil {
		return NameParts{}, err
	}
	p := NameParts{
		Name: name, Reference: r.String(), Familiar: r.Familiar(), Transport: r.Source(),
		Registry: r.Domain(), Tag: r.Tag(), Digest: string(r.Digest()),
	}
	if r.Local() {
		p.File = r.Path()
	} else {
		p.Path, p.Repository = r.Path(), r.Name()
	}
	return p, nil
}
