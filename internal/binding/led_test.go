package binding_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/routing"
)

func users(first, last uint32) routing.UIDRange {
	return routing.UIDRange{Set: true, First: first, Last: last}
}

// TestUsersAreLedByTheFirstEntry: who is selected twice belongs to the first entry, also where that leads no queries.
func TestUsersAreLedByTheFirstEntry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var problems []routing.Problem
	k := keeper(t, dir, &problems)
	k.Config.Binds = nil
	for _, e := range entries(t, binding.Configured, `
[[bind]]
link='wan1'
user='1500'
[[bind]]
link='wan0'
user='alice'
dns=false
[[bind]]
link='wan1'
user='bob'
[[bind]]
link='wan1'
user='1501-1502'
[[bind]]
link='wan0'
user='2000-2999'
[[bind]]
link='wan2'
user='3000'
strict=false
`) {
		k.Config.Binds = append(k.Config.Binds, e.Bind)
	}
	told := 0
	k.NewLed = func() { told++ }
	k.LookupUser = func(name string) (uint32, error) { return map[string]uint32{"alice": 2000, "bob": 2500}[name], nil }
	k.Reload(t.Context())
	one, zero := routing.Mark{Value: 0x81000000, Mask: 0xff000000}, routing.Mark{Value: 0x82000000, Mask: 0xff000000}
	want := []binding.Attachment{
		{Link: "wan0", Mark: zero, Users: users(2001, 2499), DNS: true},
		{Link: "wan0", Mark: zero, Users: users(2501, 2999)},
		{Link: "wan1", Mark: one, Users: users(1500, 1502), DNS: true},
		{Link: "wan1", Mark: one, Users: users(2500, 2500)},
	}
	led, known := k.Led()
	if got := binding.Attachments(led); !known || told != 1 || !slices.Equal(got, want) {
		t.Errorf("%t, told %d times:\n%+v\nwant:\n%+v", known, told, got, want)
	}
	// The marks have rules.
	if bindings, _ := k.Bindings(); !slices.ContainsFunc(bindings, func(b routing.Binding) bool { return b.Mark == one && b.LinkName == "wan1" && b.Strict }) {
		t.Errorf("%+v", bindings)
	}
	k.Reload(t.Context())
	k.Off = func() bool { return true }
	k.Reload(t.Context())
	if led, _ := k.Led(); len(led) > 0 || told != 2 {
		t.Errorf("switched off, told %d times: %+v", told, led)
	}
}

// TestNobodyIsLedTwice: each user has the mark of the first entry that selects them.
func TestNobodyIsLedTwice(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := map[string]uint32{"a": 5, "b": 7, "c": 12}
		var all []binding.Entry
		for range rapid.IntRange(0, 8).Draw(t, "entries") {
			user := rapid.SampledFrom([]string{"a", "b", "c", "1-4", "5-9", "6", "10-15", "3-12"}).Draw(t, "user")
			link := rapid.SampledFrom([]string{"wan0", "wan1"}).Draw(t, "link")
			all = append(all, binding.Entry{Bind: config.Bind{Link: link, User: user, Strict: true, DNS: rapid.Bool().Draw(t, "dns")}, Origin: binding.Added})
		}
		held := []binding.Held{{Link: "wan0", Number: 1}, {Link: "wan1", Number: 2}}
		_, states := binding.Resolve(binding.Facts{Entries: all, Users: names, Held: held, Mask: routing.DefaultMarkMask})
		want := map[uint32]routing.Mark{}
		for _, s := range slices.Backward(states) {
			for uid := s.Range.First; s.Range.Set && uid <= s.Range.Last; uid++ {
				want[uid] = s.Mark
			}
		}
		got := map[uint32]routing.Mark{}
		attached := binding.Attachments(binding.LedUsers(states))
		for _, a := range attached {
			for uid := a.Users.First; uid <= a.Users.Last; uid++ {
				if _, twice := got[uid]; twice {
					t.Fatalf("user %d twice: %+v", uid, attached)
				}
				got[uid] = a.Mark
			}
		}
		for uid := range uint32(20) {
			if got[uid] != want[uid] {
				t.Fatalf("user %d has %v, want %v: %+v", uid, got[uid], want[uid], attached)
			}
		}
	})
}

func TestAnAttachmentEndsWhenANewOneTookItsPlace(t *testing.T) {
	t.Parallel()
	mark, other := routing.Mark{Value: 0x81000000, Mask: 0xff000000}, routing.Mark{Value: 0x82000000, Mask: 0xff000000}
	a := binding.Attachment{Link: "wan1", Mark: mark, Users: users(10, 20), DNS: true}
	wider, far, farDNS, moved := a, a, a, a
	wider.Users, wider.DNS = users(1, 10), false
	far.Users, far.DNS = users(30, 40), false
	farDNS.Users = users(30, 40)
	moved.Mark = other
	for _, c := range []struct {
		name           string
		wanted, failed []binding.Attachment
		ends           bool
	}{
		{"wanted", []binding.Attachment{a}, nil, false},
		{"replaced", []binding.Attachment{wider}, nil, true},
		{"not replaced", []binding.Attachment{wider}, []binding.Attachment{wider}, false},
		{"another failed", []binding.Attachment{far}, []binding.Attachment{far}, true},
		{"the link's DNS failed", []binding.Attachment{farDNS}, []binding.Attachment{farDNS}, false},
		{"another link failed", []binding.Attachment{moved}, []binding.Attachment{moved}, true},
		{"nothing wanted", nil, nil, true},
	} {
		if ends := a.Outlived(c.wanted, c.failed); ends != c.ends {
			t.Errorf("%s: %t", c.name, ends)
		}
	}
	if got := binding.Missing([]binding.Attachment{a, wider}, []binding.Attachment{a}); !slices.Equal(got, []binding.Attachment{wider}) {
		t.Errorf("%+v", got)
	}
}
