// Package id holds the four identities of image content as distinct types,
// so that one can never be passed where another is meant.
//
//   - [Blob] is the digest of bytes as a registry serves them: a manifest, a
//     config, a (usually compressed) layer.
//   - [DiffID] is the digest of a layer's uncompressed tar stream.
//   - [ChainID] names a stack of layers: what they give when applied in order.
//   - [ImageID] is the digest of an image's config.
//
// All are written "sha256:" and 64 lower-case hexadecimal digits. The zero
// value "" means none; every non-empty value obtained from a Parse function
// or from JSON is well formed.
//
// Source: OCI image-spec, config.md, sections "Layer DiffID", "Layer ChainID"
// and "ImageID".
package id

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Blob is the digest of bytes as served by a registry.
type Blob string

// DiffID is the digest of a layer's uncompressed tar stream.
type DiffID string

// ChainID names a stack of layers.
type ChainID string

// ImageID is the digest of an image's config.
type ImageID string

const prefix = "sha256:"

// ParseBlob returns s as a Blob, or an error if it is not a sha256 digest.
func ParseBlob(s string) (Blob, error) { return parse[Blob](s) }

// ParseDiffID returns s as a DiffID, or an error if it is not a sha256 digest.
func ParseDiffID(s string) (DiffID, error) { return parse[DiffID](s) }

// ParseChainID returns s as a ChainID, or an error if it is not a sha256 digest.
func ParseChainID(s string) (ChainID, error) { return parse[ChainID](s) }

// ParseImageID returns s as an ImageID, or an error if it is not a sha256 digest.
func ParseImageID(s string) (ImageID, error) { return parse[ImageID](s) }

// BlobOf returns the digest of b.
func BlobOf(b []byte) Blob { return of[Blob](b) }

// ImageIDOf returns the image ID of a config.
func ImageIDOf(config []byte) ImageID { return of[ImageID](config) }

// BlobFrom, DiffIDFrom take a finished sha256 sum.
func BlobFrom(sum [sha256.Size]byte) Blob { return from[Blob](sum) }

// DiffIDFrom returns the DiffID whose sha256 sum is sum.
func DiffIDFrom(sum [sha256.Size]byte) DiffID { return from[DiffID](sum) }

// Chain returns the chain ID of layers, lowest first; "" for none.
func Chain(layers []DiffID) ChainID {
	var c ChainID
	for _, d := range layers {
		c = c.Append(d)
	}
	return c
}

// Append returns the chain ID of c with d on top.
func (c ChainID) Append(d DiffID) ChainID {
	if c == "" {
		return ChainID(d)
	}
	return of[ChainID]([]byte(string(c) + " " + string(d)))
}

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (b Blob) Hex() string { return hexOf(b) }

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (d DiffID) Hex() string { return hexOf(d) }

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (c ChainID) Hex() string { return hexOf(c) }

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (i ImageID) Hex() string { return hexOf(i) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (b Blob) Short() string { return short(b) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (d DiffID) Short() string { return short(d) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (c ChainID) Short() string { return short(c) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (i ImageID) Short() string { return short(i) }

// UnmarshalText refuses everything that is not a digest or empty.
func (b *Blob) UnmarshalText(t []byte) error { return unmarshal(b, t) }

// UnmarshalText refuses everything that is not a digest or empty.
func (d *DiffID) UnmarshalText(t []byte) error { return unmarshal(d, t) }

// UnmarshalText refuses everything that is not a digest or empty.
func (c *ChainID) UnmarshalText(t []byte) error { return unmarshal(c, t) }

// UnmarshalText refuses everything that is not a digest or empty.
func (i *ImageID) UnmarshalText(t []byte) error { return unmarshal(i, t) }

func parse[T ~string](s string) (T, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", fmt.Errorf("digest %q: %w", s, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest %q: only sha256 is supported", s)
	}
	return T(d), nil
}

func of[T ~string](b []byte) T { return from[T](sha256.Sum256(b)) }

func from[T ~string](sum [sha256.Size]byte) T {
	return T(prefix + hex.EncodeToString(sum[:]))
}

func hexOf[T ~string](v T) string {
	if len(v) < len(prefix) {
		return ""
	}
	return string(v[len(prefix):])
}

func short[T ~string](v T) string {
	h := hexOf(v)
	return h[:min(12, len(h))]
}

func unmarshal[T ~string](p *T, t []byte) error {
	if len(t) == 0 {
		*p = ""
		return nil
	}
	v, err := parse[T](string(t))
	if err != nil {
		return err
	}
	*p = v
	return nil
}
