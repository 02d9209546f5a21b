package engineapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
)

// imageConfig is a configuration in JSON.
type imageConfig = json.RawMessage

// configField is one that GET /images/{name}/json shows of a configuration.
type configField struct {
	name  string
	empty string     // as docker writes it where it is not set; "": it is left out
	until int        // below 1.until it is shown although it is not set
	alien bool       // below 1.until alone it is shown at all
	as    func() any // what it has to be
}

// configFields are docker's, in its order. They are what a client may rely on
// being of the right type; what an image says besides is in its configuration
// as it was written, which GET /imgfs/v1/manifest and imgfs inspect --raw have.
var configFields = []configField{
	{name: "Hostname", empty: `""`, until: 50, alien: true, as: text},
	{name: "Domainname", empty: `""`, until: 50, alien: true, as: text},
	{name: "User", empty: `""`, until: 52, as: text},
	{name: "AttachStdin", empty: `false`, until: 50, alien: true, as: truth},
	{name: "AttachStdout", empty: `false`, until: 50, alien: true, as: truth},
	{name: "AttachStderr", empty: `false`, until: 50, alien: true, as: truth},
	{name: "ExposedPorts", as: set},
	{name: "Tty", empty: `false`, until: 50, alien: true, as: truth},
	{name: "OpenStdin", empty: `false`, until: 50, alien: true, as: truth},
	{name: "StdinOnce", empty: `false`, until: 50, alien: true, as: truth},
	{name: "Env", empty: `null`, until: 52, as: words},
	{name: "Cmd", empty: `null`, until: 52, as: words},
	{name: "Healthcheck", as: health},
	{name: "ArgsEscaped", as: truth},
	{name: "Image", empty: `""`, until: 50, alien: true, as: text},
	{name: "Volumes", empty: `null`, until: 52, as: set},
	{name: "WorkingDir", empty: `""`, until: 52, as: text},
	{name: "Entrypoint", empty: `null`, until: 52, as: words},
	{name: "OnBuild", empty: `null`, until: 52, as: words},
	{name: "Labels", empty: `null`, until: 52, as: labels},
	{name: "StopSignal", as: text},
	{name: "Shell", as: words},
}

func text() any   { return new(string) }
func truth() any  { return new(bool) }
func words() any  { return new([]string) }
func set() any    { return new(map[string]struct{}) }
func labels() any { return new(map[string]string) }
func health() any {
	return new(struct {
		Test                                          []string
		Interval, Timeout, StartPeriod, StartInterval int64
		Retries                                       int
	})
}

// configOf returns a configuration as r's version of the API has it. A field
// that is not of its type is taken not to be set.
func configOf(r *http.Request, config imageConfig) imageConfig {
	var have map[string]json.RawMessage
	var compact bytes.Buffer
	if json.Compact(&compact, config) == nil {
		_ = json.Unmarshal(compact.Bytes(), &have) // not an object: nothing is set
	}
	values := make(map[string]json.RawMessage, len(have))
	for k, v := range have {
		values[strings.ToLower(k)] = v
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for _, f := range configFields {
		old := f.until > 0 && olderThan(r, f.until)
		v := values[strings.ToLower(f.name)]
		switch {
		case f.alien && !old:
			continue
		case unset(v) || json.Unmarshal(v, f.as()) != nil:
			if v = nil; old {
				v = json.RawMessage(f.empty)
			}
		}
		if v == nil {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + f.name + `":`)
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// unset reports whether a value is its type's zero value.
func unset(v json.RawMessage) bool {
	switch string(v) {
	case "", "null", `""`, "false", "0", "[]", "{}":
		return true
	}
	return false
}
