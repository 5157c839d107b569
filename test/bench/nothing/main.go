// Command nothing does nothing: what it takes to start is what any program in
// Go takes.
package main

func main() {}
