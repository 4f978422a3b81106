// Package journal writes the log: a sentence per line for people, and fields for
// programs where systemd's journal takes them.
//
// Standard error that leads to the journal (JOURNAL_STREAM, systemd.exec(5)) is
// replaced by the journal's native protocol
// (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/). Where the socket of that is missing,
// lines carry their priority as a prefix (sd-daemon(3)). Everywhere else, in a
// terminal or a file, lines are plain text with the time.
package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	native "github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"multihomed/internal/event"
)

// identifier is SYSLOG_IDENTIFIER of all our programs.
const identifier = "multihomed"

// A Field is one of the journal's (systemd.journal-fields(7)). Several may have one
// name.
type Field struct{ Name, Value string }

// A Sink takes log lines.
type Sink interface {
	// Write takes one sentence and its fields, whose names are those of the journal.
	Write(at time.Time, level slog.Level, sentence string, fields []Field) error
}

// Handler is a [slog.Handler].
type Handler struct {
	sink   Sink
	level  slog.Leveler
	before []field
	prefix string
}

var _ slog.Handler = (*Handler)(nil)

// NewHandler returns a handler that writes lines of at least a level to a sink.
func NewHandler(to Sink, level slog.Leveler) *Handler { return &Handler{sink: to, level: level} }

// New returns the logger of a program whose standard error is f.
func New(f *os.File, level slog.Leveler) *slog.Logger { return slog.New(NewHandler(SinkOf(f), level)) }

// Enabled implements [slog.Handler].
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

// WithAttrs implements [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.before = slices.Clip(h.before)
	for _, a := range attrs {
		next.before = flatten(next.before, h.prefix, a)
	}
	return &next
}

// WithGroup implements [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	next := *h
	if name != "" {
		next.prefix += name + "."
	}
	return &next
}

// Handle implements [slog.Handler].
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	fields := slices.Clip(h.before)
	r.Attrs(func(a slog.Attr) bool {
		fields = flatten(fields, h.prefix, a)
		return true
	})
	return h.sink.Write(r.Time, r.Level, sentence(r.Message, fields), journalFields(fields))
}

// ownField begins the names of fields that only this project uses.
const ownField = "MULTIHOMED_"

// journalFields names attributes as fields of the journal.
func journalFields(fields []field) []Field {
	out := []Field{{"SYSLOG_IDENTIFIER", identifier}}
	for _, f := range fields {
		switch f.key {
		case keyInterface:
			out = append(out, Field{"INTERFACE", f.value})
		case event.Key:
			out = append(out, Field{ownField + "EVENT", f.value})
			if id := event.Event(f.value).MessageID(); id != "" {
				out = append(out, Field{"MESSAGE_ID", id})
			}
		default:
			key, _ := event.IsField(f.key)
			out = append(out, Field{ownField + fieldName(key), f.value})
		}
	}
	return out
}

// fieldName makes the name of a field: capital letters, digits and underscores.
func fieldName(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		default:
			return '_'
		}
	}, key)
}

// priority is the level in the words of syslog(3).
func priority(level slog.Level) native.Priority {
	switch {
	case level >= slog.LevelError:
		return native.PriErr
	case level >= slog.LevelWarn:
		return native.PriWarning
	case level >= event.LevelNotice:
		return native.PriNotice
	case level >= slog.LevelInfo:
		return native.PriInfo
	default:
		return native.PriDebug
	}
}

// SinkOf returns where the log goes if standard error is f.
func SinkOf(f *os.File) Sink { return sinkOf(f, native.Enabled()) }

func sinkOf(f *os.File, socket bool) Sink {
	switch {
	case !leadsToJournal(f):
		return Plain(f)
	case socket:
		return Native(Prefixed(f))
	default:
		return Prefixed(f)
	}
}

// leadsToJournal reports whether a file is the journal's stream. JOURNAL_STREAM alone is not
// enough: children of services inherit it.
func leadsToJournal(f *os.File) bool {
	var dev, ino uint64
	if n, _ := fmt.Sscanf(os.Getenv("JOURNAL_STREAM"), "%d:%d", &dev, &ino); n == 2 {
		var stat unix.Stat_t
		if unix.Fstat(int(f.Fd()), &stat) == nil && stat.Dev == dev && stat.Ino == ino {
			return true
		}
	}
	// NetworkManager's dispatcher passes its own stream to scripts, and clears their
	// environment.
	peer, err := unix.Getpeername(int(f.Fd()))
	address, is := peer.(*unix.SockaddrUnix)
	return err == nil && is && address.Name == streamSocket
}

// streamSocket is the other end of what a unit writes (systemd-journald.service(8)).
const streamSocket = "/run/systemd/journal/stdout"

// System returns the log of the system, for a process without standard error: the journal,
// else syslog(3), else nothing.
func System() Sink {
	if native.Enabled() {
		return Native(discard{})
	}
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, identifier)
	if err != nil {
		return discard{} // There is no log on this system.
	}
	return &syslogSink{w}
}

type discard struct{}

func (discard) Write(time.Time, slog.Level, string, []Field) error { return nil }

type syslogSink struct{ to *syslog.Writer }

func (s *syslogSink) Write(_ time.Time, level slog.Level, text string, _ []Field) error {
	var write func(string) error
	switch {
	case level >= slog.LevelError:
		write = s.to.Err
	case level >= slog.LevelWarn:
		write = s.to.Warning
	case level >= event.LevelNotice:
		write = s.to.Notice
	case level >= slog.LevelInfo:
		write = s.to.Info
	default:
		write = s.to.Debug
	}
	if err := write(text); err != nil {
		return fmt.Errorf("writing to syslog: %w", err)
	}
	return nil
}

// Prefixed returns a sink that begins each line with its priority, <6> for info.
func Prefixed(w io.Writer) Sink {
	return &lines{to: w, begin: func(_ time.Time, level slog.Level) string { return fmt.Sprintf("<%d>", priority(level)) }}
}

// Plain returns a sink that begins each line with its time, and with its severity if
// that is not info.
func Plain(w io.Writer) Sink {
	return &lines{to: w, begin: func(at time.Time, level slog.Level) string {
		return at.Format("2006-01-02 15:04:05.000 ") + severity(level)
	}}
}

func severity(level slog.Level) string {
	switch priority(level) {
	case native.PriErr:
		return "error: "
	case native.PriWarning:
		return "warning: "
	case native.PriNotice:
		return "notice: "
	case native.PriDebug:
		return "debug: "
	default:
		return ""
	}
}

// lines write each sentence as a line.
type lines struct {
	mu    sync.Mutex
	to    io.Writer
	begin func(time.Time, slog.Level) string
}

func (l *lines) Write(at time.Time, level slog.Level, text string, _ []Field) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := io.WriteString(l.to, l.begin(at, level)+text+"\n"); err != nil {
		return fmt.Errorf("writing the log: %w", err)
	}
	return nil
}
