package offline

import (
	"maps"

	"multihomed/internal/kerneltables"
	"multihomed/internal/owners"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// recalledOwners go by rules and routes of ours where NetworkManager cannot be asked: an interface
// that has some was a link, and a family that has none may be left alone by its profile.
type recalledOwners struct {
	*owners.Owners
	reading *reading
	asked   bool
}

// Take implements [reconcile.Owners].
func (o *recalledOwners) Take() reconcile.Claims {
	c := o.Owners.Take()
	complete := c.Complete
	// Not knowing is not emptiness: what nobody is known to want may be wanted.
	c.Complete = complete && len(o.reading.unsure) == 0
	if o.asked || c.Complete {
		return c
	}
	o.asked = true
	o.reading.mirror.View(func(k *kernel.State) {
		stands := kerneltables.Read(o.reading.cfg.Tables, k)
		for _, index := range k.Indexes() {
			facts, _ := k.LinkFacts(index)
			claim, claimed := c.Changed[facts.Name]
			switch {
			case claimed && !o.reading.unsure[facts.Name]:
				continue
			case !claimed && !complete && stands.Any(facts):
				claim.Standing, claim.Watched = reconcile.Link, true
				claim.Why = "its routing stands, and NetworkManager cannot be asked"
			}
			if claim.Standing == reconcile.NoLink {
				continue
			}
			claim.Intents = maps.Clone(claim.Intents)
			if claim.Intents == nil {
				claim.Intents = map[routing.Family]routing.Intent{}
			}
			for _, f := range routing.Families() {
				if len(stands.Of(facts.Name, facts.Index, f)) == 0 {
					claim.Intents[f] = routing.Intent{LeaveAlone: "nothing of it stands, and its profile could not be read"}
				}
			}
			c.Changed[facts.Name] = claim
		}
	})
	return c
}
