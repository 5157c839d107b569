// Package hostile attacks a node from inside its containers, with a real
// daemon, keeper, CNI plugins and registry. The attacker is a program in an
// image that does not depend on the runtime (hack/images/programs/resident):
//
//   - residents continuously inspect everything visible, while the runtime runs
//     all of its operations;
//   - containers of each kind try every known way to escape;
//   - they overwrite or forge programs, terminals and logs.
//
// Findings that are allowed are in tables, each with its reason; a deliberately
// careless process verifies that the attackers detect leaks.
//
// The tests need the machine to themselves.
package hostile
