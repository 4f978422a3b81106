package daemon

import (
	"context"
	"log/slog"

	"multihomed/internal/rttables"
)

// tableNames are the content of the file in the runtime directory from which iproute2 takes
// the names of tables.
type tableNames struct {
	// none says that there is no file, because everything is switched off.
	none   bool
	leased []rttables.Leased
}

// namesOf returns the names for the current leases, and false if they have not changed since
// the last call. It costs nothing then.
func (p *parts) namesOf() (now tableNames, is bool) {
	f, off, generation := p.followers, p.owners.HostOff(), p.leases.Generation()
	if generation == f.listed && off == f.unlisted {
		return tableNames{}, false
	}
	f.listed, f.unlisted = generation, off
	if off {
		return tableNames{none: true}, true
	}
	for _, l := range p.leases.List() {
		now.leased = append(now.leased, rttables.Leased{Table: l.Table, Interface: l.Key.Interface, Family: l.Key.Family})
	}
	for _, l := range p.leases.Clients() {
		now.leased = append(now.leased, rttables.Leased{Table: l.Table, Interface: l.Key.Interface, Family: l.Key.Family})
	}
	return now, true
}

// write makes the file or removes it. Without it iproute2 shows numbers, so an error is only
// logged.
func (n tableNames) write(ctx context.Context, directory string, log *slog.Logger) {
	var err error
	if n.none {
		err = rttables.Remove(directory)
	} else {
		err = rttables.Write(directory, n.leased)
	}
	if err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "names of routing tables not written", slog.String("error", err.Error()))
	}
}
