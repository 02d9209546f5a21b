package daemon

import (
	"fmt"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

// TestStrangersOrigins has a client who is not trusted name a registry of its
// own for blobs that others' layers are made of, which may not be proven yet:
// they are never asked for there.
func TestStrangersOrigins(t *testing.T) {
	t.Parallel()
	db, err := metadb.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer metadb.Close(db)
	o := newOrigins(db, func(engineapi.RegistryOptions) fetch.Options { return fetch.Options{} })
	defer o.close()
	blob := id.BlobOf([]byte("a layer"))
	stranger := engineapi.RegistryOptions{NoHostFiles: true}
	note := func(name string, r engineapi.RegistryOptions) {
		t.Helper()
		ref, err := fetch.ParseReference(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.note(ref, []fetch.Layer{{Blob: blob, Size: 7}}, r); err != nil {
			t.Fatal(err)
		}
	}
	want := func(names ...string) {
		t.Helper()
		list, err := o.of(blob)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, at := range list {
			got = append(got, at.Name)
		}
		if !slices.Equal(got, names) {
			t.Errorf("origins: %v, want %v", got, names)
		}
	}
	note("evil.example/x", stranger)
	want("evil.example/x")
	note("good.example/x", engineapi.RegistryOptions{})
	want("good.example/x")
	note("evil.example/x", stranger)
	want("good.example/x")
	note("also.example/x", engineapi.RegistryOptions{})
	want("also.example/x", "good.example/x")

	// Nor do they have the daemon remember passwords without end.
	note("good.example/x", engineapi.RegistryOptions{Username: "u", Password: "p"})
	for i := range 2 * maxStrangers {
		note(fmt.Sprint("evil.example/x", i), engineapi.RegistryOptions{NoHostFiles: true, Username: "u", Password: "p"})
	}
	if n := len(o.logins); n > maxStrangers+1 {
		t.Errorf("%d logins are remembered", n)
	}
	if _, ok := o.logins[way{"good.example/x", engineapi.RegistryOptions{Username: "u"}}]; !ok {
		t.Error("that of the daemon's user is not")
	}
}
