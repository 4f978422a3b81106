package scrape

import (
	"context"
	"net"
	"time"
)

// Most is how many clients are served at once.
const Most = most

// ServeOne serves one client.
func ServeOne(ctx context.Context, conn net.Conn, document Document) error {
	return serve(ctx, newRoom(time.Hour, func() {}).enter(conn), document)
}
