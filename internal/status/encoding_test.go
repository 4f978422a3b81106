package status_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"multihomed/internal/status"
	_ "multihomed/test/seeds"
)

// TestEncoding: what is sent is what json.Marshal makes, and who reads it without the
// objects that are in force gets everything else, whatever is in the strings.
func TestEncoding(t *testing.T) {
	t.Parallel()
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
		`"`, `\`, `}]`, `{"state":"missing"}`, `"objects":[`, `"links":[]`, `\"state\":\"missing`, `]}`, "\xff",
	}))
	state := rapid.SampledFrom([]string{"in force", "in force", "in force", "missing", "yields"})
	rapid.Check(t, func(rt *rapid.T) {
		var s status.Status
		for n := range rapid.IntRange(0, 4).Draw(rt, "links") {
			l := status.Link{Interface: fmt.Sprintf("wan%d", n), Profile: text.Draw(rt, "profile"), Objects: []status.Object{}}
			for range rapid.IntRange(0, 4).Draw(rt, "objects") {
				l.Objects = append(l.Objects, status.Object{Kind: "rule", State: status.State(state.Draw(rt, "state")), Text: text.Draw(rt, "text"), Lifts: text.Draw(rt, "lifts")})
			}
			s.Links = append(s.Links, l)
		}
		s.Shared = []status.Object{{State: status.State(state.Draw(rt, "shared")), Text: text.Draw(rt, "text")}}
		s.By = text.Draw(rt, "by")
		kept := rapid.Bool().Draw(rt, "kept")
		data, err := status.Encode(s, func(l status.Link) []byte {
			if !kept {
				return nil
			}
			known, err := json.Marshal(l)
			if err != nil {
				rt.Fatal(err)
			}
			return known
		})
		if err != nil {
			rt.Fatal(err)
		}
		if s.Links == nil {
			s.Links = []status.Link{}
		}
		plain, err := json.Marshal(s)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(string(plain)+"\n", string(data)); diff != "" {
			rt.Fatalf("(-json.Marshal +ours):\n%s", diff)
		}
		var want status.Status
		if err := json.Unmarshal(plain, &want); err != nil {
			rt.Fatal(err)
		}
		whole, err := status.Decode(data, true)
		if err != nil || cmp.Diff(&want, whole) != "" {
			rt.Fatalf("whole: %v %s", err, cmp.Diff(&want, whole))
		}
		for i := range want.Links {
			sound := true
			for _, o := range want.Links[i].Objects {
				sound = sound && o.State == "in force"
			}
			if sound {
				want.Links[i].Objects = []status.Object{}
			}
		}
		brief, err := status.Decode(data, false)
		if err != nil || cmp.Diff(&want, brief) != "" {
			rt.Fatalf("brief: %v %s", err, cmp.Diff(&want, brief))
		}
	})
}
