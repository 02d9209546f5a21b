package engineapi

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// boolParam reads a flag of the query as docker does.
func boolParam(r *http.Request, key string) bool {
	switch strings.ToLower(strings.TrimSpace(r.URL.Query().Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// platformParam returns the platform of a query, "" if there is none: an
// object in JSON from the version of the API on that knows it, which is 1.since.
func platformParam(r *http.Request, key string, since int) (string, error) {
	list, err := platformParams(r, key, since)
	switch {
	case err != nil:
		return "", err
	case len(list) == 0:
		return "", nil
	case len(list) > 1:
		return "", fault.New(fault.Invalid, "multiple platform parameters are not supported")
	}
	return list[0], nil
}

// platformParams returns the platforms of a query.
func platformParams(r *http.Request, key string, since int) ([]string, error) {
	if olderThan(r, since) {
		return nil, nil
	}
	var list []string
	for _, v := range r.URL.Query()[key] {
		if v == "" {
			continue
		}
		p, err := parsePlatform(v)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// parsePlatform reads a platform in JSON and returns it as os/arch[/variant].
func parsePlatform(s string) (string, error) {
	var p Platform
	if err := json.Unmarshal([]byte(s), &p); err != nil {
		return "", fault.New(fault.Invalid, "failed to parse platform: %w", err)
	}
	if p.OS == "" || p.Architecture == "" {
		if p.OS == "" && p.Architecture == "" && (p.Variant != "" || p.OSVersion != "" || len(p.OSFeatures) > 0) {
			return "", fault.New(fault.Invalid, "optional platform fields provided, but OS and Architecture are missing")
		}
		return "", fault.New(fault.Invalid, "both OS and Architecture must be provided")
	}
	return p.String(), nil
}

// String returns os/arch[/variant].
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// platformJSON is the inverse of parsePlatform, for the client; what is none
// is left to the daemon to refuse.
func platformJSON(s string) string {
	os, rest, _ := strings.Cut(s, "/")
	arch, variant, _ := strings.Cut(rest, "/")
	b, err := json.Marshal(Platform{OS: os, Architecture: arch, Variant: variant})
	if err != nil {
		return s // a struct of strings
	}
	return string(b)
}

// timeParam reads a time as docker's clients send it: seconds since 1970, with
// nanoseconds behind a point; also what filters take. The zero time if it is
// empty.
func timeParam(r *http.Request, key string) (time.Time, error) {
	s := r.URL.Query().Get(key)
	if s == "" {
		return time.Time{}, nil
	}
	t, err := parseTime(s)
	if err != nil {
		return t, fault.New(fault.Invalid, "invalid time '%s=%s'", key, s)
	}
	return t, nil
}

// parseTime reads seconds since 1970, with a fraction perhaps, a date and time,
// or how long ago it was.
func parseTime(s string) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && s != "0" { // 0 is 1970
		return time.Now().Add(-d), nil
	}
	sec, frac, _ := strings.Cut(s, ".")
	if n, err := strconv.ParseInt(sec, 10, 64); err == nil {
		// Docker's form pads with zeros to nine digits.
		ns, err := strconv.ParseUint((frac + "000000000")[:9], 10, 64)
		if err == nil && len(frac) <= 9 {
			return time.Unix(n, int64(ns)), nil
		}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.Invalid, "failed to parse value as time or duration: %q", s)
}
