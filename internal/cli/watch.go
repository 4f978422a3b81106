package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/offline"
	"multihomed/internal/status/socket"
	"multihomed/internal/watch"
	"multihomed/internal/watch/follow"
)

const watchHelp = `Show what changes on this host, why, and who did it: multihomed, NetworkManager, the
kernel, or another process.

On a terminal it shows a screen: the links with role, health, addresses, gateways and
rates, the interface that unbound traffic leaves by, marked with *, and the last
changes. Press q to quit. Into a pipe, or with --lines, it prints one line for each
change: time, link, what changed, and in brackets who did it and why. It prints until it
is interrupted, or nobody reads.

It listens to the kernel, and asks the daemon why. Without the daemon it reads the host
itself after a change; then the health of links and the reasons of multihomed are
missing. It changes nothing and works without root. Without root it cannot look into
processes of other users: it then says "probably", or "not known".

What multihomed does to its rules and routes of one link is one line. With --verbose and
with --json there is one for each, and for each route that comes and goes with an
address.

Many changes of one sort are counted: the first are shown, then their number. If changes
come faster than they can be read, it says so.

With --json it prints one JSON object a line. Fields are only ever added as long as
"schema" is 1; a field without a value is absent:

  schema    1
  time      when, as in RFC 3339
  event     what happened, see multihomectl(8)
  link      the interface, absent if it is about the host
  family    "ipv4" or "ipv6", absent if it is about none or both
  object    the address, gateway, rule, route, program, or code of a problem
  text      what changed, in words
  why       the reason, as far as it is known
  fix       how to fix a problem
  reason    why a rule or a route of multihomed exists
  who       "multihomed", "networkmanager", "kernel", "other" or "unknown"
  process   name of the process, pid its number
  probable  true: who is told by circumstances, and not by a socket
  count     number of changes, 1 for most`

// mostOwn is how many rules and routes of multihomed are told one by one, or explain a summary.
const mostOwn = 1024

// Programs get nearly everything. A person gets one line for what multihomed does to a link, and on a
// screen less of all others, too.
var (
	inFull   = watch.Limits{Own: mostOwn, Others: 64}                //nolint:gochecknoglobals // a constant in all but name
	inLines  = watch.Limits{Own: mostOwn, Others: 16, Summary: true} //nolint:gochecknoglobals // a constant in all but name
	onScreen = watch.Limits{Own: mostOwn, Others: 6, Summary: true}  //nolint:gochecknoglobals // a constant in all but name
)

func (a *app) watch() *cobra.Command {
	var asJSON, lines, verbose bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "show what changes, why, and who did it",
		Long:  watchHelp,
		Example: `  multihomectl watch
  multihomectl watch --lines | tee changes.log
  multihomectl watch --lines --verbose
  multihomectl watch --json | jq 'select(.who == "other")'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			how, err := a.look()
			if err != nil {
				return err
			}
			loaded := a.find(cmd.Context())
			_, terminal := descriptor(a.Out)
			if terminal && !asJSON && !lines && !verbose && a.Env("TERM") != "dumb" {
				return a.watchScreen(cmd.Context(), loaded, how)
			}
			limits := inLines
			if asJSON || verbose {
				limits = inFull
			}
			return a.watchLines(cmd.Context(), loaded, limits, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line, see above")
	cmd.Flags().BoolVar(&lines, "lines", false, "print lines on a terminal, too")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print lines, one for each rule and route of multihomed")
	return cmd
}

// asker returns what asks the daemon, and reads the host where none answers.
func (a *app) asker(loaded config.Loaded) func(context.Context, follow.Question) (*status.Status, error) {
	isRead := false
	return func(ctx context.Context, q follow.Question) (*status.Status, error) {
		cfg := loaded.Config
		answer, err := persist(ctx, cfg, answerTime, func(ctx context.Context) (answer *Status, more bool, err error) {
			answer, err = socket.Ask(ctx, cfg.RuntimeDir, q.Whole)
			return answer, false, err
		})
		if err == nil {
			isRead = false
			return answer, nil
		}
		if !q.Changed && isRead {
			return nil, nil //nolint:nilnil // nothing has changed
		}
		v, readErr := offline.Look(ctx, cfg)
		if readErr != nil {
			return nil, readErr
		}
		isRead = true
		v.Fault = loaded.Fault
		v.Silent = v.Running
		s := v.Status(check.Problems(v, a.Root), a.Version)
		return &s, nil
	}
}

// follows runs a follower beside a function that takes its updates, until either ends.
func (a *app) follows(ctx context.Context, loaded config.Loaded, limits watch.Limits, use func(context.Context, <-chan follow.Update) error) error {
	f, err := follow.New(follow.Options{Ask: a.asker(loaded), Limits: limits})
	if err != nil {
		return &exitError{exitUsage, err}
	}
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() {
		err := f.Run(inner)
		ended <- err
		cancel(err)
	}()
	err = use(inner, f.Updates())
	cancel(nil)
	if failure := <-ended; failure != nil {
		return &exitError{exitUsage, failure}
	}
	return err
}

// watchLines prints a line for each event.
func (a *app) watchLines(ctx context.Context, loaded config.Loaded, limits watch.Limits, asJSON bool) error {
	signal.Ignore(unix.SIGPIPE) // A write says it.
	return a.follows(ctx, loaded, limits, func(ctx context.Context, updates <-chan follow.Update) error {
		out := newPrinter(a.Out)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		said := ""
		for {
			select {
			case u := <-updates:
				if u.Fault != nil && u.Fault.Error() != said {
					said = u.Fault.Error()
					fmt.Fprintf(a.Err, "multihomectl: %s\n", clean(said))
				}
				if err := out.print(ctx, linesOf(u.Events, asJSON)); err != nil {
					return printed(err)
				}
			case <-ticker.C:
				if abandoned(a.Out) {
					return nil
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
}

func linesOf(events []watch.Event, asJSON bool) []byte {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	for _, e := range events {
		if !asJSON {
			b.WriteString(e.Line() + "\n")
			continue
		}
		if err := encoder.Encode(e); err != nil {
			panic(err) // An event has nothing that cannot be encoded.
		}
	}
	return b.Bytes()
}

// printed makes an exit status of an error of printing. Nobody has to read to the end.
func printed(err error) error {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, context.Canceled) {
		return nil
	}
	return &exitError{exitUsage, fmt.Errorf("printing what changed: %w", err)}
}

// abandoned reports whether a pipe has no reader any more (poll(2)).
func abandoned(w io.Writer) bool {
	f, is := w.(*os.File)
	if !is {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd())}} //nolint:gosec // a file descriptor
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// A printer writes in a goroutine of its own: who waits for a reader can still be ended.
type printer struct {
	work chan []byte
	done chan error
}

func newPrinter(w io.Writer) *printer {
	p := &printer{work: make(chan []byte), done: make(chan error, 1)}
	go func() {
		for text := range p.work {
			_, err := w.Write(text)
			p.done <- err
		}
	}()
	return p
}

// print writes, and returns when that is done, or when ctx ends. After an error it is not used again.
func (p *printer) print(ctx context.Context, text []byte) error {
	if len(text) == 0 {
		return nil
	}
	p.work <- text
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return context.Canceled
	}
}
