package daemon

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

// What docker commit -c makes of a config, instruction by instruction.
func TestChanges(t *testing.T) {
	t.Parallel()
	const base = `{"Env":["PATH=/bin","A=1"],"Cmd":["old"],"Entrypoint":["e"],"WorkingDir":"/w","Labels":{"l":"1"},"Volumes":{"/v":{}},"ExposedPorts":{"1/udp":{}},"OnBuild":["RUN a"],"Odd":{"kept":[1.50]}}`
	for _, tt := range []struct {
		changes string
		want    map[string]string // fields that differ from base; "" is gone
	}{
		{`CMD ["a", "b c"]`, map[string]string{"Cmd": `["a","b c"]`}},
		{`cmd echo "$A"  x`, map[string]string{"Cmd": `["/bin/sh","-c","echo \"$A\"  x"]`}},
		{`CMD [not json]`, map[string]string{"Cmd": `["/bin/sh","-c","[not json]"]`}},
		{`CMD []`, map[string]string{"Cmd": `[]`}},
		{`ENTRYPOINT ["x"]`, map[string]string{"Entrypoint": `["x"]`, "Cmd": ""}},
		{"ENTRYPOINT [\"x\"]\nCMD [\"y\"]", map[string]string{"Entrypoint": `["x"]`, "Cmd": `["y"]`}},
		{"CMD [\"y\"]\n\n# note\nENTRYPOINT [\"x\"]", map[string]string{"Entrypoint": `["x"]`, "Cmd": `["y"]`}},
		{`ENV B=2 A="3 4"`, map[string]string{"Env": `["PATH=/bin","A=3 4","B=2"]`}},
		{`ENV B two words`, map[string]string{"Env": `["PATH=/bin","A=1","B=two words"]`}},
		{`ENV PATH=$PATH:/x B='$A' C=\$A D=${A} E=${Z:-${A}} F=${A:+yes}`, map[string]string{"Env": `["PATH=/bin:/x","A=1","B=$A","C=$A","D=1","E=1","F=yes"]`}},
		{`LABEL m=2 "k k"='v v'`, map[string]string{"Labels": `{"k k":"v v","l":"1","m":"2"}`}},
		{`EXPOSE 80 443/udp 8000-8002/TCP`, map[string]string{"ExposedPorts": `{"1/udp":{},"443/udp":{},"80/tcp":{},"8000/tcp":{},"8001/tcp":{},"8002/tcp":{}}`}},
		{`VOLUME /a /b`, map[string]string{"Volumes": `{"/a":{},"/b":{},"/v":{}}`}},
		{`VOLUME ["/a b"]`, map[string]string{"Volumes": `{"/a b":{},"/v":{}}`}},
		{`USER 5:$A`, map[string]string{"User": `"5:1"`}},
		{`WORKDIR x/../y`, map[string]string{"WorkingDir": `"/w/y"`}},
		{`WORKDIR /z/`, map[string]string{"WorkingDir": `"/z"`}},
		{`ONBUILD RUN b`, map[string]string{"OnBuild": `["RUN a","RUN b"]`}},
		{`STOPSIGNAL SIGRTMIN+3`, map[string]string{"StopSignal": `"SIGRTMIN+3"`}},
		{`HEALTHCHECK --interval=5m --timeout=3s --retries=2 CMD curl -f x || exit 1`, map[string]string{"Healthcheck": `{"Test":["CMD-SHELL","curl -f x || exit 1"],"Interval":300000000000,"Timeout":3000000000,"Retries":2}`}},
		{`HEALTHCHECK CMD ["a","b"]`, map[string]string{"Healthcheck": `{"Test":["CMD","a","b"]}`}},
		{`HEALTHCHECK NONE`, map[string]string{"Healthcheck": `{"Test":["NONE"]}`}},
	} {
		var c, was runConfig
		if json.Unmarshal([]byte(base), &c) != nil || json.Unmarshal([]byte(base), &was) != nil {
			t.Fatal("base")
		}
		if err := c.apply([]string{tt.changes}); err != nil {
			t.Errorf("%s: %v", tt.changes, err)
			continue
		}
		for k, v := range was {
			if _, ok := tt.want[k]; !ok && string(c[k]) != string(v) {
				t.Errorf("%s: %s is now %s", tt.changes, k, c[k])
			}
		}
		for k, v := range tt.want {
			if string(c[k]) != v {
				t.Errorf("%s: %s is %s, want %s", tt.changes, k, c[k], v)
			}
		}
	}
}

func TestChangesRefused(t *testing.T) {
	t.Parallel()
	for change, text := range map[string]string{
		"RUN x":                          "RUN is not a valid change command",
		"FROM y":                         "FROM is not a valid change command",
		"CMD":                            "CMD requires at least one argument",
		"USER a b":                       "USER requires exactly one argument",
		"ENV A":                          "A has no value",
		"ENV A=1 B":                      "can't find = in B",
		"ENV =1":                         "names can not be blank",
		`ENV A="x`:                       "unexpected end of statement",
		"ENV A=${x":                      "unexpected end of statement",
		"ENV A=${x:?y}":                  "unsupported modifier",
		"EXPOSE http":                    "Invalid containerPort: http",
		"EXPOSE 80:80":                   "Invalid containerPort: 80:80",
		"EXPOSE 70000":                   "Invalid range",
		"EXPOSE 9-8":                     "Invalid range",
		"ONBUILD FROM x":                 "FROM isn't allowed as an ONBUILD trigger",
		"ONBUILD onbuild RUN x":          "Chaining ONBUILD",
		"STOPSIGNAL ;rm":                 "Invalid signal: ;rm",
		"HEALTHCHECK curl x":             `Unknown type "curl" in HEALTHCHECK`,
		"HEALTHCHECK --interval=x CMD y": "--interval is no duration",
		"HEALTHCHECK --color=x CMD y":    "Unknown flag: color",
		"HEALTHCHECK CMD":                "Missing command after HEALTHCHECK CMD",
	} {
		err := runConfig{}.apply([]string{change})
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), text) || fault.HintOf(err) == "" {
			t.Errorf("%s: %v (%s)", change, err, fault.HintOf(err))
		}
	}
}

func TestRawWords(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		``:                   nil,
		` a  b	c `:           {"a", "b", "c"},
		`a\ b c`:             {`a\ b`, "c"},
		`"a b"c 'd e' \`:     {`"a b"c`, `'d e'`, `\`},
		`'a\' b`:             {`'a\'`, "b"},
		`"a\" b" c`:          {`"a\" b"`, "c"},
		`k="x y" z='"' q=""`: {`k="x y"`, `z='"'`, `q=""`},
	} {
		if got := rawWords(text); !slices.Equal(got, want) {
			t.Errorf("%s: %q", text, got)
		}
	}
}

func FuzzChanges(f *testing.F) {
	f.Add(`ENV A="$PATH" B=${C:-d}`)
	f.Add(`HEALTHCHECK --retries=1 CMD ["x"]`)
	f.Add("EXPOSE 1-65535/tcp\nVOLUME [\"/a\"]\nLABEL a b")
	f.Fuzz(func(t *testing.T, change string) {
		c := runConfig{"Env": json.RawMessage(`["C=1"]`)}
		if c.apply([]string{change}) != nil {
			return
		}
		if _, err := json.Marshal(c); err != nil {
			t.Errorf("%q: %v", change, err)
		}
	})
}
