package overlay_test

import (
	"os/exec"
	"testing"
)

func TestNamespace(t *testing.T) {
	for _, c := range namespaceCases {
		t.Run(c.name, func(t *testing.T) {
			u := start(t, asRoot, c.chain)
			cmd := exec.Command("sh", "-c", c.script)
			cmd.Dir = u.at
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			if got := string(out); got != c.want {
				t.Errorf("got:\n%swant:\n%s", got, c.want)
			}
			if said := u.errs.String(); said != "" {
				t.Errorf("server: %s", said)
			}
		})
	}
}

type namespaceCase struct {
	name   string
	chain  chain
	script string
	want   string
}

var namespaceCases = []namespaceCase{
	{"read", chain{"dir d\nfile d/a hello\n"}, "ls -R . && cat d/a && echo && stat -c %h d/a", ".:\nd\n\n./d:\na\nhello\n1\n"},
	{"create", chain{"dir d\nfile d/a hello\n"}, "echo x > d/b && cat d/b && ls d && rm d/b && ls d", "x\na\nb\na\n"},
}
