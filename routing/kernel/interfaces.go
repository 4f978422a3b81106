package kernel

import (
	"context"

	"multihomed/routing/lookup"
)

// Interfaces reads all interfaces of the host. It needs no privileges.
func (r *Reader) Interfaces(ctx context.Context) ([]lookup.Interface, error) {
	return r.interfaces(ctx)
}
