package daemon

import (
	"encoding/json"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// runConfig is the part of an image's config that says how it is run. What is
// not changed stays byte for byte.
type runConfig map[string]json.RawMessage

// field decodes a field into v; what is absent, or of another form, leaves v.
func (c runConfig) field(name string, v any) {
	if raw, ok := c[name]; ok {
		_ = json.Unmarshal(raw, v)
	}
}

func (c runConfig) set(name string, v any) error {
	return setFields(c, map[string]any{name: v})
}

// apply applies instructions of a Dockerfile, those that docker commit takes.
func (c runConfig) apply(changes []string) error {
	cmdSet := false
	for _, change := range changes {
		for line := range strings.SplitSeq(change, "\n") {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			word, _, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
			rest := strings.TrimSpace(line[len(word):])
			word = strings.ToUpper(word)
			if rest == "" {
				return badChange(line, "%s requires at least one argument", word)
			}
			cmdSet = cmdSet || word == "CMD"
			if err := c.instruction(word, rest, line); err != nil {
				return err
			}
			// An entrypoint takes over the command line that the base's had.
			if word == "ENTRYPOINT" && !cmdSet {
				delete(c, "Cmd")
			}
		}
	}
	return nil
}

func badChange(line, format string, args ...any) error {
	err := fault.New(fault.Invalid, format, args...)
	return fault.WithHint(fault.New(fault.Invalid, "change %q: %w", line, err),
		"changes are CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR of a Dockerfile")
}

// instruction applies one instruction.
func (c runConfig) instruction(word, rest, line string) error {
	env := c.env()
	switch word {
	case "CMD":
		return c.set("Cmd", c.commandLine(rest))
	case "ENTRYPOINT":
		return c.set("Entrypoint", c.commandLine(rest))
	case "ENV":
		pairs, err := assignments(rest, env)
		if err != nil {
			return badChange(line, "%w", err)
		}
		return c.set("Env", setEnv(c.envList(), pairs))
	case "LABEL":
		pairs, err := assignments(rest, env)
		if err != nil {
			return badChange(line, "%w", err)
		}
		labels := map[string]string{}
		c.field("Labels", &labels)
		if labels == nil {
			labels = map[string]string{}
		}
		for _, p := range pairs {
			labels[p[0]] = p[1]
		}
		return c.set("Labels", labels)
	case "EXPOSE":
		words, err := expandWords(rest, env)
		if err != nil {
			return badChange(line, "%w", err)
		}
		return c.expose(words, line)
	case "VOLUME":
		var words []string
		if json.Unmarshal([]byte(rest), &words) != nil {
			var err error
			if words, err = expandWords(rest, env); err != nil {
				return badChange(line, "%w", err)
			}
		}
		return c.addKeys("Volumes", words)
	case "ONBUILD":
		switch trigger, _, _ := strings.Cut(strings.ToUpper(rest), " "); trigger {
		case "ONBUILD":
			return badChange(line, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
		case "MAINTAINER", "FROM":
			return badChange(line, "%s isn't allowed as an ONBUILD trigger", trigger)
		}
		var list []string
		c.field("OnBuild", &list)
		return c.set("OnBuild", append(list, rest))
	case "HEALTHCHECK":
		h, err := healthcheck(rest)
		if err != nil {
			return badChange(line, "%w", err)
		}
		return c.set("Healthcheck", h)
	case "USER", "WORKDIR", "STOPSIGNAL":
		words, err := expandWords(rest, env)
		if err != nil {
			return badChange(line, "%w", err)
		}
		if len(words) != 1 {
			return badChange(line, "%s requires exactly one argument", word)
		}
		return c.single(word, words[0], line)
	}
	return badChange(line, "%s is not a valid change command", word)
}

// single applies an instruction of one argument.
func (c runConfig) single(word, arg, line string) error {
	switch word {
	case "USER":
		return c.set("User", arg)
	case "STOPSIGNAL":
		if !signalForm.MatchString(arg) {
			return badChange(line, "Invalid signal: %s", arg)
		}
		return c.set("StopSignal", arg)
	}
	at := "/"
	c.field("WorkingDir", &at)
	if !path.IsAbs(arg) {
		arg = path.Join("/", at, arg)
	}
	return c.set("WorkingDir", path.Clean(arg))
}

var signalForm = regexp.MustCompile(`^([0-9]{1,2}|(SIG)?[A-Z][A-Z0-9+-]*)$`)

// commandLine reads the JSON form of a command, or makes a shell's of it.
func (c runConfig) commandLine(rest string) []string {
	var list []string
	if strings.HasPrefix(rest, "[") && json.Unmarshal([]byte(rest), &list) == nil && list != nil {
		return list
	}
	shell := []string{"/bin/sh", "-c"}
	c.field("Shell", &shell)
	return append(shell, rest)
}

func (c runConfig) envList() []string {
	var list []string
	c.field("Env", &list)
	return list
}

// env returns the environment, for the variables in an instruction.
func (c runConfig) env() func(string) (string, bool) {
	list := c.envList()
	return func(name string) (string, bool) {
		for _, e := range list {
			if k, v, _ := strings.Cut(e, "="); k == name {
				return v, true
			}
		}
		return "", false
	}
}

// setEnv sets variables, in their place where they exist.
func setEnv(list []string, pairs [][2]string) []string {
next:
	for _, p := range pairs {
		for i, e := range list {
			if k, _, _ := strings.Cut(e, "="); k == p[0] {
				list[i] = p[0] + "=" + p[1]
				continue next
			}
		}
		list = append(list, p[0]+"="+p[1])
	}
	return list
}

// addKeys adds keys to a field that is a set.
func (c runConfig) addKeys(name string, keys []string) error {
	set := map[string]struct{}{}
	c.field(name, &set)
	if set == nil {
		set = map[string]struct{}{}
	}
	for _, k := range keys {
		if k = strings.TrimSpace(k); k == "" {
			return fault.New(fault.Invalid, "%s: an empty name", name)
		}
		set[k] = struct{}{}
	}
	return c.set(name, set)
}

var portForm = regexp.MustCompile(`^([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp|TCP|UDP|SCTP))?$`)

func (c runConfig) expose(words []string, line string) error {
	var ports []string
	for _, w := range words {
		f := portForm.FindStringSubmatch(w)
		if f == nil {
			return badChange(line, "Invalid containerPort: %s", w)
		}
		low, _ := strconv.Atoi(f[1])
		high := low
		if f[2] != "" {
			high, _ = strconv.Atoi(f[2])
		}
		proto := strings.ToLower(f[3])
		if proto == "" {
			proto = "tcp"
		}
		if low < 1 || high > 65535 || low > high {
			return badChange(line, "Invalid range specified for the Container Port: %s", w)
		}
		for p := low; p <= high; p++ {
			ports = append(ports, strconv.Itoa(p)+"/"+proto)
		}
	}
	return c.addKeys("ExposedPorts", ports)
}

// health is the config of a health check; durations in nanoseconds.
type health struct {
	Test          []string      `json:",omitempty"`
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

// healthcheck reads the arguments of HEALTHCHECK.
func healthcheck(rest string) (*health, error) {
	h := &health{}
	for strings.HasPrefix(rest, "--") {
		flag, more, _ := strings.Cut(rest, " ")
		rest = strings.TrimSpace(more)
		name, value, _ := strings.Cut(flag[2:], "=")
		if name == "retries" {
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				return nil, fault.New(fault.Invalid, "--retries must be at least 0: %q", value)
			}
			h.Retries = n
			continue
		}
		into, ok := map[string]*time.Duration{"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod, "start-interval": &h.StartInterval}[name]
		if !ok {
			return nil, fault.New(fault.Invalid, "Unknown flag: %s", name)
		}
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 || d > 0 && d < time.Millisecond {
			return nil, fault.New(fault.Invalid, "--%s is no duration of at least 1ms: %q", name, value)
		}
		*into = d
	}
	word, args, _ := strings.Cut(rest, " ")
	args = strings.TrimSpace(args)
	switch strings.ToUpper(word) {
	case "NONE":
		if args != "" {
			return nil, fault.New(fault.Invalid, "HEALTHCHECK NONE takes no arguments")
		}
		return &health{Test: []string{"NONE"}}, nil
	case "CMD":
		if args == "" {
			return nil, fault.New(fault.Invalid, "Missing command after HEALTHCHECK CMD")
		}
		var list []string
		if strings.HasPrefix(args, "[") && json.Unmarshal([]byte(args), &list) == nil {
			h.Test = append([]string{"CMD"}, list...)
		} else {
			h.Test = []string{"CMD-SHELL", args}
		}
		return h, nil
	}
	return nil, fault.New(fault.Invalid, "Unknown type %q in HEALTHCHECK (try CMD)", word)
}
