package journal

import (
	"os"

	native "github.com/coreos/go-systemd/v22/journal"
)

// NativeTo is Native with another way to the journal.
func NativeTo(send func(string, native.Priority, map[string]string) error, otherwise Sink) Sink {
	return &nativeSink{send: send, otherwise: otherwise}
}

// SinkOfWithout is SinkOf on a host whose journal has no socket.
func SinkOfWithout(f *os.File) Sink { return sinkOf(f, false) }
