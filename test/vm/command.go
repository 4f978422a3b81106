package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"multihomed/test/lab"
	"multihomed/test/vm/internal/wire"
)

// A Command is a program to run in a machine as root, without standard input.
type Command struct {
	Args   []string  // the program, a path or a name, and its arguments
	Env    []string  // added to the machine's, as KEY=value
	Dir    string    // the machine's by default
	Output io.Writer // gets the output as it comes, if not nil
}

// A Result is how a program ended.
type Result struct {
	Output string // standard output and standard error
	Status int    // the exit status, or 128 plus the signal that ended it
}

// An ExitError says that a program ended with another status than 0.
type ExitError struct {
	Args []string
	Result
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", strings.Join(e.Args, " "), e.Status, strings.TrimSpace(e.Output))
}

// killTimeout is how long a killed program may take to be gone.
const killTimeout = 5 * time.Second

// Command runs a program to its end. A status that is not 0 is not an error: an error
// means that the program did not run, or did not end before the context or the
// machine did. With the context ends the program, and what it has started.
func (m *Machine) Command(ctx context.Context, c Command) (Result, error) {
	s, err := m.session()
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", strings.Join(c.Args, " "), err)
	}
	r, err := m.command(ctx, s, c)
	if err != nil {
		return r, fmt.Errorf("%s: %w", strings.Join(c.Args, " "), err)
	}
	return r, nil
}

func (m *Machine) command(ctx context.Context, s *session, c Command) (Result, error) {
	dir := c.Dir
	if dir == "" {
		dir = m.dir
	}
	id, p, err := s.expect(c.Output)
	if err != nil {
		return Result{}, err
	}
	f, err := wire.JSON(wire.Start, id, wire.Command{Args: c.Args, Env: append(append([]string(nil), m.env...), c.Env...), Dir: dir})
	if err == nil {
		err = s.send(f)
	}
	if err != nil {
		s.forget(id)
		return Result{}, err
	}
	return s.wait(ctx, id, p)
}

// wait waits for the end of a command.
func (s *session) wait(ctx context.Context, id uint32, p *pending) (Result, error) {
	select {
	case r, ok := <-p.ended:
		out := Result{p.abandon(), r.Status}
		switch {
		case !ok:
			return out, s.failure(errEnded)
		case r.Err != "":
			return out, errors.New(r.Err)
		}
		return out, nil
	case <-ctx.Done():
	}
	err := context.Cause(ctx)
	if killErr := s.send(wire.Frame{Kind: wire.Kill, Command: id}); killErr != nil {
		err = errors.Join(err, killErr)
	}
	timer := time.NewTimer(killTimeout)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		err = errors.Join(err, errors.New("it does not end when it is killed"))
	}
	s.forget(id)
	out := p.abandon()
	return Result{Output: out, Status: -1}, fmt.Errorf("%w; it wrote: %s", err, lab.Tail(out, 20))
}

// Run runs a program and returns what it wrote, standard error included. A status
// that is not 0 is an *ExitError.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	r, err := m.Command(ctx, Command{Args: args})
	if err == nil && r.Status != 0 {
		err = &ExitError{args, r}
	}
	return r.Output, err
}

// result reads the payload of an Exit.
func result(f wire.Frame) wire.Result {
	var r wire.Result
	if err := json.Unmarshal(f.Payload, &r); err != nil {
		return wire.Result{Status: -1, Err: fmt.Sprintf("the agent's answer: %v", err)}
	}
	return r
}

// CopyIn copies a file of the host into the machine. Missing directories are made;
// the file appears with all of its contents.
func (m *Machine) CopyIn(src, dst string, mode fs.FileMode) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return fmt.Errorf("copying into machine %s: %w", m.name, err)
	}
	return m.WriteFile(dst, data, mode)
}

// WriteFile is CopyIn of what is in memory.
func (m *Machine) WriteFile(dst string, data []byte, mode fs.FileMode) error {
	s, err := m.session()
	if err == nil {
		err = s.write(wire.File{Path: dst, Mode: mode}, data)
	}
	if err != nil {
		return fmt.Errorf("writing %s of machine %s: %w", dst, m.name, err)
	}
	return nil
}

func (s *session) write(file wire.File, data []byte) error {
	id, p, err := s.expect(nil)
	if err != nil {
		return err
	}
	defer s.forget(id)
	f, err := wire.JSON(wire.Write, id, file)
	if err != nil {
		return err
	}
	for err = s.send(f); err == nil && len(data) > 0; {
		n := min(len(data), wire.MaxPayload)
		err = s.send(wire.Frame{Kind: wire.Data, Command: id, Payload: data[:n]})
		data = data[n:]
	}
	if err == nil {
		err = s.send(wire.Frame{Kind: wire.Data, Command: id})
	}
	if err != nil {
		return err
	}
	_, err = s.wait(context.Background(), id, p)
	return err
}
