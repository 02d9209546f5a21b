package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func loginCommand() *cli.Command {
	return command(cli.Command{
		Name: "login", ArgsUsage: "[REGISTRY]",
		Usage: "log in to a registry",
		Description: `
The registry is Docker Hub if none is named. It is asked whether it takes the
credentials; then they are kept where docker keeps them, in
$DOCKER_CONFIG/config.json or ~/.docker/config.json, or by the credential
program that this file names, or in the file given by --authfile. All commands
find them there, and so do docker and podman.

Examples:
  imgfs login registry.example.com
  imgfs login -u ci --password-stdin registry.example.com < token

` + exitsText(fault.Failed, fault.Invalid, fault.Denied, fault.Network, fault.Unavailable, fault.Canceled),
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "username", Aliases: []string{"u"}, Usage: "`USER` name"},
			&cli.StringFlag{Name: "password", Aliases: []string{"p"}, Usage: "`PASSWORD` password or token, for all who see the command line"},
			&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from standard input"},
		}, without(accessFlags(), "creds", "registry-token")...),
		Action: login,
	})
}

// maxPassword bounds a password on standard input, in bytes.
const maxPassword = 64 << 10

func login(c *cli.Context) error {
	if err := argsBetween(c, 0, 1); err != nil {
		return err
	}
	registry := registryKey(c.Args().First())
	store, err := openCredentials(c)
	if err != nil {
		return err
	}
	cred, kept, err := loginCredential(c, store, registry)
	if err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	try := func() error {
		req := engineapi.LoginRequest{Username: cred.username, ServerAddress: registry}
		if cred.token {
			req.IdentityToken = cred.secret
		} else {
			req.Password = cred.secret
		}
		if req.Registry, err = registryOptions(c); err != nil {
			return err
		}
		res, err := client.Login(c.Context, req)
		if err == nil && res.IdentityToken != "" {
			cred.secret, cred.token = res.IdentityToken, true
		}
		return err
	}
	err = try()
	if kept && fault.KindOf(err) == fault.Denied && isTerminal() {
		fmt.Fprintf(c.App.ErrWriter, "Login did not succeed, error: %s\n", oneLine(err.Error()))
		if cred, err = askCredential(c, ""); err != nil {
			return err
		}
		err = try()
	}
	if err != nil {
		return err
	}
	plain, err := store.put(c.Context, registry, cred)
	if err != nil {
		return err
	}
	if plain && !kept {
		fmt.Fprintf(c.App.ErrWriter, "WARNING! Your credentials are stored unencrypted in '%s'.\nConfigure a credential helper to remove this warning.\n", store.path)
	}
	fmt.Fprintln(c.App.Writer, "Login Succeeded")
	return nil
}

// loginCredential returns what to log in with: what flags and standard input
// say, or what is kept already, or what the user types.
func loginCredential(c *cli.Context, store *credentialFile, registry string) (cred credential, kept bool, err error) {
	user, password := c.String("username"), c.String("password")
	if password != "" {
		fmt.Fprintln(c.App.ErrWriter, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	}
	switch {
	case password != "" && c.Bool("password-stdin"):
		return cred, false, fault.New(fault.Invalid, "--password and --password-stdin are mutually exclusive")
	case c.Bool("password-stdin") && user == "":
		return cred, false, fault.New(fault.Invalid, "Must provide --username with --password-stdin")
	case c.Bool("password-stdin"):
		b, err := io.ReadAll(io.LimitReader(os.Stdin, maxPassword+1))
		if err != nil {
			return cred, false, err
		}
		if len(b) > maxPassword {
			return cred, false, fault.New(fault.Invalid, "password: longer than %d bytes", maxPassword)
		}
		password = strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
		if password == "" {
			return cred, false, fault.New(fault.Invalid, "password is empty")
		}
	case user == "" && password == "":
		if cred, ok := store.get(c.Context, registry); ok {
			fmt.Fprintln(c.App.ErrWriter, "Authenticating with existing credentials...")
			return cred, true, nil
		}
	}
	if user != "" && password != "" {
		return credential{username: user, secret: password}, false, nil
	}
	cred, err = askCredential(c, user)
	return cred, false, err
}

func isTerminal() bool { return term.IsTerminal(int(os.Stdin.Fd())) }

// askCredential asks the user, at a terminal.
func askCredential(c *cli.Context, user string) (credential, error) {
	if !isTerminal() {
		return credential{}, fault.WithHint(fault.New(fault.Invalid, "Cannot perform an interactive login from a non TTY device"),
			"give the name with -u, and the password with --password-stdin")
	}
	if user == "" {
		fmt.Fprint(c.App.ErrWriter, "Username: ")
		line, err := bufio.NewReader(io.LimitReader(os.Stdin, maxPassword)).ReadString('\n')
		if user = strings.TrimSpace(line); user == "" {
			return credential{}, errors.Join(fault.New(fault.Invalid, "Error: Non-null Username Required"), err)
		}
	}
	fmt.Fprint(c.App.ErrWriter, "Password: ")
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(c.App.ErrWriter)
	if err != nil {
		return credential{}, err
	}
	if len(b) == 0 {
		return credential{}, fault.New(fault.Invalid, "Error: Password Required")
	}
	return credential{username: user, secret: string(b)}, nil
}

func logoutCommand() *cli.Command {
	return command(cli.Command{
		Name: "logout", ArgsUsage: "[REGISTRY]",
		Usage: "forget the credentials for a registry",
		Description: `
The registry is Docker Hub if none is named. Credentials go from where imgfs
login keeps them.

Examples:
  imgfs logout registry.example.com

` + exitsText(fault.Failed, fault.Invalid),
		Flags: without(registryFlags(), "platform", "progress", "quiet", "creds", "registry-token", "insecure"),
		Action: func(c *cli.Context) error {
			if err := argsBetween(c, 0, 1); err != nil {
				return err
			}
			store, err := openCredentials(c)
			if err != nil {
				return err
			}
			registry := registryKey(c.Args().First())
			known, err := store.remove(c.Context, registry)
			switch {
			case err != nil:
				return err
			case !known:
				fmt.Fprintf(c.App.Writer, "Not logged in to %s\n", oneLine(registry))
			default:
				fmt.Fprintf(c.App.Writer, "Removing login credentials for %s\n", oneLine(registry))
			}
			return nil
		},
	})
}
