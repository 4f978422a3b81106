package bindrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder/client"
	"multihomed/routing"
)

// Options are what to run, and how.
type Options struct {
	// Link is the name of the interface.
	Link string
	// Args are the program and its arguments.
	Args []string
	// Socket is where multihomed-binder listens.
	Socket string
	// RequireHelper refuses the way without the helper.
	RequireHelper bool
	// Attendant are the arguments by which this program, as argv[0] of the first, calls [Attend].
	Attendant []string
	// Say tells the user something.
	Say func(text string)
	// Before is called last, when nothing can fail any more but the program itself: it gives signals back.
	Before func()
}

// Exit statuses, as those of env(1).
const (
	// ExitFailed: this program failed, and the other one did not run.
	ExitFailed = 125
	// ExitCannot: the program was found and cannot be run.
	ExitCannot = 126
	// ExitMissing: there is no such program.
	ExitMissing = 127
)

// An Error ends the command before the program has run.
type Error struct {
	Status int
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

func failed(err error) error { return &Error{ExitFailed, err} }

// scopeTime bounds the wait for the user's service manager.
const scopeTime = 20 * time.Second

// Run becomes the program. It returns only if that cannot be, with an [*Error].
func Run(ctx context.Context, o Options) error {
	if err := routing.CheckInterfaceName(o.Link); err != nil {
		return failed(fmt.Errorf("%w; to fix: name the link's interface, as multihomectl status shows it", err))
	}
	path, err := find(o.Args[0])
	if err != nil {
		return err
	}
	bound, err := bind(ctx, o)
	switch {
	case err == nil:
		err = bound()
	case !isWithoutHelper(err):
	case o.RequireHelper:
		err = fmt.Errorf("%w; or run it without --require-helper, which covers less", err)
	default:
		return withoutHelper(o, path, err)
	}
	if err != nil {
		return failed(err)
	}
	return become(o, path)
}

// isWithoutHelper reports whether another way of binding may work.
func isWithoutHelper(err error) bool {
	return errors.Is(err, client.ErrAway) || errors.Is(err, client.ErrUnable) || errors.Is(err, errNoCgroup)
}

// find looks for the program before anything is made for it, as execvp(3) does.
func find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, judge(name, check(name))
	}
	var found error
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		// An empty part is the working directory, and stays a path.
		path := filepath.Join(dir, name)
		if !strings.Contains(path, "/") {
			path = "./" + path
		}
		switch err := check(path); {
		case err == nil:
			return path, nil
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			found = err
		}
	}
	if found == nil {
		found = fs.ErrNotExist
	}
	return "", judge(name, found)
}

// check says why a file cannot be run.
func check(path string) error {
	info, err := os.Stat(path) //nolint:gosec // The caller's own program.
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	return unix.Access(path, unix.X_OK)
}

func judge(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case name == "", errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return &Error{ExitMissing, fmt.Errorf("there is no program %q; to fix: write its path, or set PATH", name)}
	default:
		return &Error{ExitCannot, fmt.Errorf("the program %q cannot be run: %w", name, err)}
	}
}

// become replaces this process by the program.
func become(o Options, path string) error {
	if o.Before != nil {
		o.Before()
	}
	err := syscall.Exec(path, o.Args, os.Environ()) //nolint:gosec // The caller's own program.
	status := ExitCannot
	if errors.Is(err, unix.ENOENT) {
		status = ExitMissing // Of a script, the interpreter.
	}
	return &Error{status, fmt.Errorf("the program %q cannot be run: %w", path, err)}
}

// bind makes a cgroup and has it bound. The function that it returns goes there, if this process is not there yet.
func bind(ctx context.Context, o Options) (goThere func() error, err error) {
	h, err := findHome()
	if err != nil {
		return nil, err
	}
	if !h.mayMake() {
		return bindScope(ctx, o)
	}
	cgroup, err := h.make()
	if err != nil {
		return nil, err
	}
	if err = ask(ctx, o, cgroup); err == nil {
		err = attendCgroup(o.Attendant, cgroup)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Rmdir(cgroup.Name()), cgroup.Close())
	}
	return func() error { return enter(cgroup) }, nil
}

// bindScope is bind for a user who may make no cgroup himself.
func bindScope(ctx context.Context, o Options) (func() error, error) {
	making, cancel := context.WithTimeout(ctx, scopeTime)
	defer cancel()
	h, err := enterScope(making, o.Link)
	if err != nil {
		return nil, fmt.Errorf("%w; to fix: log in as this user, or: loginctl enable-linger USER; or as root: multihomectl run --link %s -- runuser -u USER -- COMMAND", err, o.Link)
	}
	cgroup, err := h.open()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(ask(ctx, o, cgroup), cgroup.Close()); err != nil {
		return nil, err
	}
	return func() error { return nil }, nil
}

func ask(ctx context.Context, o Options, cgroup *os.File) error {
	note, err := client.Bind(ctx, o.Socket, o.Link, cgroup)
	if err == nil && note != "" {
		o.Say(note)
	}
	return err
}

// closing closes what is open on an error.
func closing(err error, all ...io.Closer) error {
	for _, c := range all {
		err = errors.Join(err, c.Close())
	}
	return err
}
