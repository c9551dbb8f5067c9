using System.CommandLine;
using Mustafar.Benchmarks;

BenchmarkOptions options = new();
RootCommand root = new("Measures Mustafar's operations against dense attention of torch, in one process on this machine.");
root.Subcommands.Add(options.Command("attention", "One decode step of attention over a filled cache.", AttentionBenchmark.Run));
root.Subcommands.Add(options.Command("compress", "Pruning and compressing a prompt.", CompressBenchmark.Run));
root.Subcommands.Add(options.Command("append", "Adding one token to each sequence.", AppendBenchmark.Run));
return root.Parse(args).Invoke();
