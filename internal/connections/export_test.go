package connections

// OneByOne are flows of a kernel that does not delete by a filter.
func OneByOne() *Flows { return &Flows{oneByOne: true} }

// MayTranslate is mayTranslate.
func MayTranslate(modules string) bool { return mayTranslate(modules) }

// PlanEndpoints is planEndpoints.
var PlanEndpoints = planEndpoints
