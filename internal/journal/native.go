package journal

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	native "github.com/coreos/go-systemd/v22/journal"
)

// nativeSocket takes messages with fields (systemd-journald.service(8)).
const nativeSocket = "/run/systemd/journal/socket"

// Native returns a sink for the journal. Lines that the journal refuses go to another sink.
func Native(otherwise Sink) Sink { return &nativeSink{socket: nativeSocket, otherwise: otherwise} }

// A nativeSink writes datagrams itself, because a field may have several values and
// go-systemd takes a map.
type nativeSink struct {
	socket    string
	otherwise Sink

	mu   sync.Mutex
	conn *net.UnixConn
}

func (s *nativeSink) Write(at time.Time, level slog.Level, text string, fields []Field) error {
	var b bytes.Buffer
	appendField(&b, Field{"PRIORITY", strconv.Itoa(int(priority(level)))})
	appendField(&b, Field{"MESSAGE", text})
	for _, f := range fields {
		appendField(&b, f)
	}
	if s.send(b.Bytes()) == nil || s.sendLarge(level, text, fields) == nil {
		return nil
	}
	return s.otherwise.Write(at, level, text, fields)
}

// send tries twice, the second time on a new socket: the journal may have been restarted.
func (s *nativeSink) send(datagram []byte) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 2 {
		if s.conn == nil {
			if s.conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"}); err != nil {
				s.conn = nil
				return err //nolint:wrapcheck // the line goes elsewhere
			}
		}
		if _, err = s.conn.Write(datagram); err == nil {
			return nil
		}
		_ = s.conn.Close()
		s.conn = nil
	}
	return err //nolint:wrapcheck // the line goes elsewhere
}

// sendLarge passes a line that is too long for a datagram as a file. It keeps only the last
// value of each field.
func (s *nativeSink) sendLarge(level slog.Level, text string, fields []Field) error {
	if s.socket != nativeSocket {
		return net.ErrClosed
	}
	last := make(map[string]string, len(fields))
	for _, f := range fields {
		last[f.Name] = f.Value
	}
	return native.Send(text, priority(level), last) //nolint:wrapcheck // the line goes elsewhere
}

// appendField encodes a field; a value of several lines goes with its length.
func appendField(b *bytes.Buffer, f Field) {
	b.WriteString(f.Name)
	if !strings.Contains(f.Value, "\n") {
		b.WriteString("=" + f.Value + "\n")
		return
	}
	b.WriteByte('\n')
	b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(f.Value))))
	b.WriteString(f.Value + "\n")
}
