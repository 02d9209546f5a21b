// Package id holds the identities of image content as distinct types, so that
// one can never be passed where another is meant.
//
//   - [Blob] is the digest of bytes as a registry serves them: a manifest, a
//     config, a (usually compressed) layer.
//   - [DiffID] is the digest of a layer's uncompressed tar stream.
//   - [ChainID] names a stack of layers: what they give when applied in order.
//   - [ImageID] is the digest of an image's config.
//   - [LayerKey] names a layer as it is stored here. It is the layer's diffID
//     if the content is proven to be what that says, and is kept as the tar
//     stream itself; else it is a digest that no diffID can be, see [Unproven].
//   - [ChainKey] names a stack of stored layers, as a chain ID does a stack of
//     diffIDs; it is the chain ID if all their keys are diffIDs.
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

// LayerKey names a stored layer.
type LayerKey string

// ChainKey names a stack of stored layers.
type ChainKey string

const prefix = "sha256:"

// ParseBlob returns s as a Blob, or an error if it is not a sha256 digest.
func ParseBlob(s string) (Blob, error) { return parse[Blob](s) }

// ParseDiffID returns s as a DiffID, or an error if it is not a sha256 digest.
func ParseDiffID(s string) (DiffID, error) { return parse[DiffID](s) }

// ParseImageID returns s as an ImageID, or an error if it is not a sha256 digest.
func ParseImageID(s string) (ImageID, error) { return parse[ImageID](s) }

// ParseLayerKey returns s as a LayerKey, or an error if it is not a sha256 digest.
func ParseLayerKey(s string) (LayerKey, error) { return parse[LayerKey](s) }

// ParseChainKey returns s as a ChainKey, or an error if it is not a sha256 digest.
func ParseChainKey(s string) (ChainKey, error) { return parse[ChainKey](s) }

// BlobOf returns the digest of b.
func BlobOf(b []byte) Blob { return of[Blob](b) }

// ImageIDOf returns the image ID of a config.
func ImageIDOf(config []byte) ImageID { return of[ImageID](config) }

// BlobFrom returns the Blob whose sha256 sum is sum.
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

// Key returns the key under which the layer's stream is stored once it is proven.
func (d DiffID) Key() LayerKey { return LayerKey(d) }

// Keys returns the keys of layers whose streams are proven.
func Keys(layers []DiffID) []LayerKey {
	keys := make([]LayerKey, len(layers))
	for i, d := range layers {
		keys[i] = d.Key()
	}
	return keys
}

// Unproven returns the key of a layer whose content is not proven, or is not
// kept as its tar stream: it depends on the form of what is kept, on the blob,
// and on the index that says what the blob holds. The text that is hashed is
// none that a layer can consist of, a tar, so no diffID equals it.
func Unproven(form string, blob, index Blob) LayerKey {
	return of[LayerKey]([]byte("imgfs layer 1\n" + form + "\n" + string(blob) + "\n" + string(index) + "\n"))
}

// Stack returns the key of a stack of layers, lowest first; "" for none.
func Stack(layers []LayerKey) ChainKey {
	var c ChainKey
	for _, k := range layers {
		c = c.Append(k)
	}
	return c
}

// Append returns the key of c with k on top, by the rule of chain IDs.
func (c ChainKey) Append(k LayerKey) ChainKey {
	return ChainKey(ChainID(c).Append(DiffID(k)))
}

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (b Blob) Hex() string { return hexOf(b) }

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (d DiffID) Hex() string { return hexOf(d) }

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (c ChainID) Hex() string { return hexOf(c) }

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (i ImageID) Hex() string { return hexOf(i) }

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (k LayerKey) Hex() string { return hexOf(k) }

// Hex returns the 64 hexadecimal digits, "" for the zero value.
func (c ChainKey) Hex() string { return hexOf(c) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (b Blob) Short() string { return short(b) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (d DiffID) Short() string { return short(d) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (c ChainID) Short() string { return short(c) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (i ImageID) Short() string { return short(i) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (k LayerKey) Short() string { return short(k) }

// Short returns the first 12 hexadecimal digits, as docker prints them.
func (c ChainKey) Short() string { return short(c) }

// UnmarshalText refuses everything that is not a digest or empty.
func (b *Blob) UnmarshalText(t []byte) error { return unmarshal(b, t) }

// UnmarshalText refuses everything that is not a digest or empty.
func (d *DiffID) UnmarshalText(t []byte) error { return unmarshal(d, t) }

// UnmarshalText refuses everything that is not a digest or empty.
func (c *ChainID) UnmarshalText(t []byte) error { return unmarshal(c, t) }

// UnmarshalText refuses everything that is not a digest or empty.
func (i *ImageID) UnmarshalText(t []byte) error { return unmarshal(i, t) }

// UnmarshalText refuses everything that is not a digest or empty.
func (k *LayerKey) UnmarshalText(t []byte) error { return unmarshal(k, t) }

// UnmarshalText refuses everything that is not a digest or empty.
func (c *ChainKey) UnmarshalText(t []byte) error { return unmarshal(c, t) }

func parse[T ~string](s string) (T, error) {
	if wellFormed(s) { // of thousands, when a store is opened
		return T(s), nil
	}
	d, err := digest.Parse(s)
	if err != nil {
		return "", fmt.Errorf("digest %q: %w", s, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest %q: only sha256 is supported", s)
	}
	return T(d), nil
}

// wellFormed reports whether s is "sha256:" and 64 lower-case hexadecimal digits.
func wellFormed(s string) bool {
	if len(s) != len(prefix)+2*sha256.Size || s[:len(prefix)] != prefix {
		return false
	}
	for i := len(prefix); i < len(s); i++ {
		if !hexDigit[s[i]] {
			return false
		}
	}
	return true
}

var hexDigit = func() (t [256]bool) {
	for _, c := range "0123456789abcdef" {
		t[c] = true
	}
	return t
}()

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
