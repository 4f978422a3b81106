package routing

// A Rung is one kind of rule of ours: where it stands, why, and what it is made
// per. The ladder is the one list of them: the planner takes priorities and
// decisions from it, ownership its bands, and status, the manual and the tests
// its words.
type Rung struct {
	// Name is how the code and the documents call the rung.
	Name string
	// First and Last are the priorities of its rules; most rungs have one.
	First, Last Priority
	// Decision is the reason that its rules carry.
	Decision Decision
	// Rule is the form of the rule in the words of ip-rule(8).
	Rule string
	// Per is what there is one rule for.
	Per string
	// Why says what would go wrong without it.
	Why string
	// Behind says that the rules stand behind those that somebody else has at
	// the same priority.
	Behind bool
}

// Contains reports whether a priority is the rung's.
func (r Rung) Contains(p Priority) bool { return r.First <= p && p <= r.Last }

// Priorities of the ladder. The gaps are for the administrator and for later
// rungs.
const (
	// PriorityNumbered is the lowest priority at which a rule is taken for one
	// that the kernel numbered; see [Rung] "step".
	PriorityNumbered     Priority = 7000
	PriorityLocal        Priority = 7999
	PriorityLift         Priority = 8500
	priorityLastLift     Priority = 8999
	PriorityOverlap      Priority = 9015
	PriorityKnown        Priority = 9020
	PriorityNested       Priority = 9021
	PriorityOpening      Priority = 9022
	PriorityBinding      Priority = 9050
	PriorityBindingNever Priority = 9051
	PriorityDenied       Priority = 9060
	PriorityDeniedNever  Priority = 9061
	PriorityAnswerKnown  Priority = 9099
	PriorityAnswer       Priority = 9100
	PriorityAnswerNever  Priority = 9101
	PriorityForward      Priority = 9200
	PriorityForwardNever Priority = 9201
	PriorityDeviceSource Priority = 9400
	PriorityDevice       Priority = 9500
	PrioritySource       Priority = 10000
	PriorityUnreachable  Priority = 10500
	PriorityTwin         Priority = 18000
	PriorityNetworkMain  Priority = 19000
	PriorityNetwork      Priority = 20000
	// PriorityAgain is the last priority before the kernel's rule for main. What stands there
	// may stand up to firstAgain: see behindLadder.
	PriorityAgain    Priority = 32765
	firstAgain       Priority = 32761
	PriorityMain     Priority = 32766
	PriorityDefault  Priority = 32767
	PriorityMatchAll Priority = 91000
)

// Ladder returns the rungs in the order in which the kernel reads them.
func Ladder() []Rung {
	return []Rung{
		{
			Name: "step", First: lowestStep, Last: PriorityKnown - 1, Decision: StepOver,
			Rule: "from SOURCE iif lo goto LOWEST, oif LINK goto LOWEST, fwmark NUMBER goto LOWEST, BOUND goto LOWEST",
			Per:  "source and device of an uplink, table that answers and binding, while a rule that the kernel numbered is in front",
			Why:  "the kernel numbers a rule that comes without a priority. If it selects nothing, it must have the same effect whether it came before us or after us. Rules of other programs that precede it without us are repeated in front of it",
		},
		{
			Name: "local", First: PriorityLocal, Last: PriorityLocal, Decision: KeepLocal,
			Rule: "from SOURCE lookup local, oif LINK lookup local", Per: "source and device, if the kernel's rule for local is not in front of the ladder",
			Why: "VRF set-ups move the rule of local to 32765: the host would look for its own addresses on the link",
		},
		{
			Name: "lift", First: PriorityLift, Last: priorityLastLift, Decision: LiftForeign,
			Rule: "SELECTORS goto P", Per: "rule of another program behind it that selects",
			Why: "a rule that selects packets by mark, user, protocol, port, interface, source or destination keeps its effect",
		},
		{
			Name: "overlap", First: PriorityOverlap, Last: PriorityOverlap, Decision: KeepOverlap,
			Rule: "from ADDRESS to PREFIX lookup T", Per: "address of a link whose network is another link's too, one of them local",
			Why: "main knows one way into the network, and the rung of what main knows would take it for both",
		},
		{
			Name: "known", First: PriorityKnown, Last: PriorityKnown, Decision: KeepKnown,
			Rule: "from SOURCE lookup main suppress_prefixlength 7 suppress_ifgroup UPLINKS",
			Per:  "source; and for each table of a rule of another program that selects nothing",
			Why:  "bound traffic reaches containers, VPN networks and LANs as main knows them, but nothing that is a default in pieces",
		},
		{
			Name: "nested", First: PriorityNested, Last: PriorityNested, Decision: KeepKnown,
			Rule: "from SOURCE to PREFIX lookup T suppress_prefixlength LEN, from SOURCE to PREFIX fwmark 0x6d6b/0 lookup T",
			Per:  "source, and network of a link in the group of uplinks, if it lies inside a network behind an opening",
			Why:  "main leads into the inner network, and the table of the opening knows the outer one alone",
		},
		{
			Name: "opening", First: PriorityOpening, Last: PriorityOpening, Decision: KeepKnown,
			Rule: "from SOURCE lookup T suppress_prefixlength 7",
			Per:  "source, and table of a link that is in the group of uplinks for its other family alone",
			Why:  "an interface has one group: the networks behind a LAN with an IPv6 router stay reachable for IPv4 as main knows them",
		},
		{
			Name: "binding", First: PriorityBinding, Last: PriorityBinding, Decision: Bind,
			Rule: "USER-OR-MARK lookup main suppress_prefixlength 7 suppress_ifgroup UPLINKS, from SOURCE USER-OR-MARK lookup T",
			Per:  "binding of what this host sends, and source of its link",
			Why:  "what is bound reaches containers, VPN networks and LANs as main knows them, and all else by its link, with an address of the link. For IPv6 the rule also finds the source (FIB_RULE_FIND_SADDR): if the first lookup failed, the kernel would choose an address of any link and look up again",
		},
		{
			Name: "binding refused", First: PriorityBindingNever, Last: PriorityBindingNever, Decision: BindNever,
			Rule: "USER-OR-MARK unreachable", Per: "strict binding of what this host sends, in both families",
			Why: "without a way by the link, what is bound to it must not leave by another one",
		},
		{
			Name: "denied", First: PriorityDenied, Last: PriorityDenied, Decision: Bind,
			Rule: "as forwarded binding", Per: "binding of what this host forwards, if nobody may ask it by other links",
			Why: "in front of the answers: what was asked on another link is answered by the bound link, too, and dropped there",
		},
		{
			Name: "denied, refused", First: PriorityDeniedNever, Last: PriorityDeniedNever, Decision: BindNever,
			Rule: "as forwarded binding refused", Per: "strict one of these", Why: "without a way by the link, nothing leaves",
		},
		{
			Name: "answer, as main knows it", First: PriorityAnswerKnown, Last: PriorityAnswerKnown, Decision: AnswerKnown,
			Rule: "fwmark NUMBER lookup main suppress_prefixlength 7 suppress_ifgroup UPLINKS",
			Per:  "table of an uplink, while answers are on",
			Why:  "a packet that is answered by a link may be for a container, a VPN network or a LAN",
		},
		{
			Name: "answer", First: PriorityAnswer, Last: PriorityAnswer, Decision: AnswerLink,
			Rule: "fwmark NUMBER lookup T", Per: "table of an uplink, while answers are on",
			Why: "what this host forwards or translates is answered on the link on which it was asked: a published port, a port forward, a masqueraded client",
		},
		{
			Name: "answer refused", First: PriorityAnswerNever, Last: PriorityAnswerNever, Decision: AnswerNever,
			Rule: "fwmark NUMBER unreachable", Per: "table of an uplink, while answers are on",
			Why: "without a way by the link, the packet must be refused here, and not leave by another provider with an address of this one",
		},
		{
			Name: "forwarded binding", First: PriorityForward, Last: PriorityForward, Decision: Bind,
			Rule: "INTERFACE-OR-SOURCE lookup main suppress_prefixlength 7 suppress_ifgroup UPLINKS, INTERFACE-OR-SOURCE lookup T",
			Per:  "binding of what this host forwards",
			Why:  "containers and networks leave by their link. They stand behind the answers: what they are asked is answered where it was asked",
		},
		{
			Name: "forwarded binding refused", First: PriorityForwardNever, Last: PriorityForwardNever, Decision: BindNever,
			Rule: "INTERFACE-OR-SOURCE unreachable", Per: "strict binding of what this host forwards, in both families",
			Why: "without a way by the link, what is bound to it must not leave by another one",
		},
		{
			Name: "device and source", First: PriorityDeviceSource, Last: PriorityDeviceSource, Decision: FollowDevice,
			Rule: "from PREFIX oif LINK lookup T", Per: "table of a device that has several",
			Why: "a socket bound to a device and to an address uses the gateway of that address",
		},
		{
			Name: "device", First: PriorityDevice, Last: PriorityDevice, Decision: FollowDevice,
			Rule: "oif LINK lookup T", Per: "table",
			Why: "sockets bound to a device, also where two modems have the same address",
		},
		{
			Name: "source", First: PrioritySource, Last: PrioritySource, Decision: FollowSource,
			Rule: "from SOURCE lookup T", Per: "source", Why: "a packet leaves by the link whose address it carries",
		},
		{
			Name: "unreachable", First: PriorityUnreachable, Last: PriorityUnreachable, Decision: NeverStray,
			Rule: "from SOURCE unreachable", Per: "source of an uplink that is the host's own",
			Why: "the kernel empties T when the link goes down: then the packet must be refused here, and not leave by another provider",
		},
		{
			Name: "twin", First: PriorityTwin, Last: PriorityTwin, Decision: ReachTwin,
			Rule: "to PREFIX lookup main suppress_prefixlength LEN, to PREFIX lookup T",
			Per:  "network of two uplinks of which one is dead", Why: "failover inside one network: its hosts are reached by the uplink that works",
		},
		{
			Name: "network, as main knows it", First: PriorityNetworkMain, Last: PriorityNetworkMain, Decision: KeepMain,
			Rule: "to PREFIX lookup main suppress_prefixlength LEN-1", Per: "network that main does not have through the link",
			Why: "whatever main knows inside the network goes first",
		},
		{
			Name: "network", First: PriorityNetwork, Last: PriorityNetwork, Decision: ReachNetwork,
			Rule: "to PREFIX lookup T", Per: "network that main does not have through the link",
			Why: "unbound traffic reaches a network whose routes were moved out of main, or that only a lease or a hook knows",
		},
		{
			Name: "again", First: firstAgain, Last: PriorityAgain, Decision: Again, Behind: true,
			Rule: "the rungs overlap, known, nested, opening, device, source and unreachable once more", Per: "source and device, while a lift stands; also behind a rule of another program that selects, inside of the ladder or before a rule for everybody: the rungs in front of it",
			Why: "if a lifted rule has no answer, the lookup continues behind it: traffic bound to a source or a device must find its link there",
		},
		{
			Name: "failover", First: firstAgain, Last: PriorityAgain, Decision: FollowLiving, Behind: true,
			Rule: "not from NOBODY lookup main suppress_prefixlength 0, lookup F",
			Per:  "family, while failover is on and two uplinks have a default",
			Why:  "unbound traffic follows an uplink that works: the first rule reads what main knows besides its defaults, the second table F, which is empty unless main's best default is dead",
		},
		{
			Name: "last resort", First: PriorityMatchAll, Last: PriorityMatchAll, Decision: LastResort,
			Rule: "from all iif lo lookup T", Per: "uplink that may",
			Why: "unbound traffic of this host when main has no default",
		},
	}
}

// ladder is Ladder, made once.
var ladder = Ladder() //nolint:gochecknoglobals // a constant in all but name

// RungOf returns the rung that a priority belongs to: where rungs overlap, the
// narrowest.
func RungOf(p Priority) (Rung, bool) {
	var found Rung
	ours := false
	for _, r := range ladder {
		if r.Contains(p) && (!ours || r.Last-r.First < found.Last-found.First) {
			found, ours = r, true
		}
	}
	return found, ours
}
