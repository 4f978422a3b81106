package ancestor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"slices"

	_ "modernc.org/sqlite" // the database's format

	"multihomed/allocator"
	"multihomed/routing"
)

// maxRows bounds how many leases are read.
const maxRows = 100_000

// A Row is one lease in the database.
type Row struct {
	allocator.Imported
	// Why is the reason why it cannot be taken over, empty if it can.
	Why string
}

// ReadDatabase reads the leases, in the order in which to enter them: the ancestor numbers
// the tables of each family separately, so two rows can have one number, and then IPv4
// keeps it. It ignores expiry times, which count from a boot that may be over.
func ReadDatabase(ctx context.Context, path string) (rows []Row, err error) {
	doing := func(err error) error { return fmt.Errorf("reading the ancestor's database %s: %w", path, err) }
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, err
	case err != nil:
		return nil, doing(err)
	case !info.Mode().IsRegular():
		return nil, doing(errors.New("it is not a regular file; to fix: name the file with --database"))
	}
	u := url.URL{Path: path}
	db, err := sql.Open("sqlite", "file:"+u.EscapedPath()+"?mode=ro&_pragma=busy_timeout(2000)&_pragma=trusted_schema(0)&_pragma=query_only(1)")
	if err != nil {
		return nil, doing(err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	list, err := db.QueryContext(ctx, fmt.Sprintf(`SELECT RtTable, AddrFamily, Ifname, Addr, coalesce(Tag, '') FROM RtTables ORDER BY AddrFamily = 2 DESC, RtTable, AddrFamily LIMIT %d`, maxRows))
	if err != nil {
		return nil, doing(err)
	}
	defer func() { err = errors.Join(err, list.Close()) }()
	for list.Next() {
		var table, family int64
		var name, address, tag string
		if err := list.Scan(&table, &family, &name, &address, &tag); err != nil {
			return nil, doing(err)
		}
		rows = append(rows, row(table, family, name, address, tag))
	}
	if err := list.Err(); err != nil {
		return nil, doing(err)
	}
	return rows, nil
}

func row(table, family int64, name, address, tag string) Row {
	r := Row{Imported: allocator.Imported{
		Key: allocator.ClientKey{Interface: name, Address: address}, Tag: tag,
	}}
	if table < 1 || table > int64(^routing.TableID(0)) {
		r.Why = fmt.Sprintf("%d is not a routing table", table)
		return r
	}
	r.Table = routing.TableID(table)
	if !slices.Contains([]int64{0, int64(routing.IPv4), int64(routing.IPv6)}, family) {
		r.Why = fmt.Sprintf("address family %d is unknown", family)
		return r
	}
	r.Key.Family = routing.Family(family) //nolint:gosec // one of three
	if a, err := netip.ParseAddr(address); err == nil && family != 0 {
		// The ancestor keeps what its client wrote.
		r.Key.Address = a.String()
	}
	return r
}
