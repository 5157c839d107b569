// Package hostile attacks a node from inside its containers, with a real
// daemon, keeper, CNI plugins and registry. What attacks is a program in an
// image that knows nothing of the runtime (hack/images/programs/resident):
//
//   - residents look at everything, all the time, while the runtime does all that
//     it does beside them;
//   - containers of each kind try to get out, one known way after another;
//   - programs, terminals and logs are what they overwrite and forge.
//
// What an attacker may find is in tables, each with its reason; that it does find
// what is there is shown by a process that is careless on purpose.
//
// The tests want the machine to themselves.
package hostile
