package server

import (
	"bufio"
	"context"
	"net"

	"github.com/godbus/dbus/v5"
)

// Encode writes a message.
func Encode(m *dbus.Message, serial uint32) ([]byte, error) { return encode(m, serial) }

// Authenticate does so on a connection to a bus.
func Authenticate(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, authTime)
	defer cancel()
	return (&wire{conn: conn, in: bufio.NewReader(conn)}).authenticate(ctx)
}

// ReadFrame reads a message, and its values if it is a call with text. Held are the bytes that it keeps.
func ReadFrame(r *bufio.Reader) (member string, held int, err error) {
	f, ok, err := readFrame(r)
	if err != nil || !ok {
		return "", 0, err
	}
	if f.raw != nil && f.signature == "s" {
		_, _ = f.body()
	}
	return f.member, len(f.raw), nil
}

// Denied says why polkit could not be asked.
func Denied(err error, action string) error { return denied(err, action) }
