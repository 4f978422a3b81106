package allocator

import "context"

// Pragma asks the open connection, for tests of how it was opened.
func (a *Allocator) Pragma(ctx context.Context, name string) (value string, err error) {
	a.disk.Lock()
	defer a.disk.Unlock()
	err = a.db.QueryRowContext(ctx, "PRAGMA "+name).Scan(&value)
	return value, err
}
