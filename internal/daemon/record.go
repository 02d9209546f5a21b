package daemon

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

// mountKey is followed by a mount's ID; the value is a record as JSON.
const mountKey = "daemon/mount/"

// record is what the store remembers of a live mount: all that is needed to
// make it again without a registry or an image's record.
type record struct {
	ID      string        `json:"id"`
	Target  string        `json:"target"`
	Source  string        `json:"source"`
	Image   string        `json:"image,omitempty"`
	ImageID id.ImageID    `json:"imageID,omitempty"`
	ChainID id.ChainKey   `json:"chainID,omitempty"`
	Layers  []id.LayerKey `json:"layers,omitempty"` // lowest first
	Driver  string        `json:"driver"`
	Layout  bool          `json:"layout,omitempty"`
	Suid    bool          `json:"suid,omitempty"`
	Dev     bool          `json:"dev,omitempty"`
	MountNS string        `json:"mountNS"`
	UserNS  string        `json:"userNS"`
	Device  string        `json:"device,omitempty"` // erofs, overlay: major:minor
	Created time.Time     `json:"created"`

	// Writable: the upper is either the store's, by name, or the user's directory.
	Mode     string `json:"mode,omitempty"` // ro ("" too) or rw
	Upper    string `json:"upper,omitempty"`
	UpperDir string `json:"upperDir,omitempty"`
	Tmp      bool   `json:"tmp,omitempty"`     // the upper goes with the mount
	Foreign  bool   `json:"foreign,omitempty"` // the upper was made on another image
	Squash   bool   `json:"squash,omitempty"`  // the mounting user stands for root in the tree

	// Layers that are not all here, see engineapi.MountRequest.
	Prefetch string `json:"prefetch,omitempty"`
	OnError  string `json:"onError,omitempty"`
	met      bool   // see reads

	Provenance bool `json:"provenance,omitempty"` // files have attributes that say what layer they are of

	// Layout view: how to fetch names not yet known.
	Platform string                     `json:"platform,omitempty"`
	Registry engineapi.RegistryOptions  `json:"registry,omitzero"` // without secrets
	auth     *engineapi.RegistryOptions // with them; nil after a restart
}

func (r *record) mount() engineapi.Mount {
	m := engineapi.Mount{
		ID: r.ID, Target: r.Target, Image: r.Image, ImageID: r.ImageID, ChainID: r.ChainID,
		Driver: r.Driver, Mode: "ro", Layout: r.Layout, Created: r.Created,
		Upper: r.Upper, UpperDir: r.UpperDir, Tmp: r.Tmp, Foreign: r.Foreign,
	}
	if r.writable() {
		m.Mode = "rw"
	}
	return m
}

func (r *record) writable() bool { return r.Mode == "rw" }

// saveRecord returns when the record is on the disk.
func saveRecord(db *badger.DB, r *record) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = metadb.Update(db, map[string][]byte{mountKey + r.ID: b})
	}
	if err != nil {
		return fmt.Errorf("mount record: %w", err)
	}
	return nil
}

func dropRecord(db *badger.DB, id string) error {
	if err := metadb.Update(db, map[string][]byte{mountKey + id: nil}); err != nil {
		return fmt.Errorf("mount record: %w", err)
	}
	return nil
}

// loadRecords returns all records, oldest first, and the IDs of those that
// cannot be read.
func loadRecords(db *badger.DB) (list []record, damaged []string, err error) {
	err = metadb.Scan(db, mountKey, func(id string, v []byte) error {
		var r record
		if err := json.Unmarshal(v, &r); err != nil || r.ID != id {
			damaged = append(damaged, id)
			return nil
		}
		list = append(list, r)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("mount records: %w", err)
	}
	slices.SortFunc(list, func(a, b record) int { return a.Created.Compare(b.Created) })
	return list, damaged, nil
}
