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
