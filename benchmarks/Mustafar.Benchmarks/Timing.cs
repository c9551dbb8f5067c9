using System.Diagnostics;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>Times calls by the wall clock.</summary>
internal static class Timing
{
    private const int FewestCalls = 5;

    /// <summary>Median time of a call in microseconds, after warming up.</summary>
    /// <param name="seconds">Time to spend.</param>
    /// <param name="call">What to time; its tensors are freed after each call.</param>
    internal static double Median(double seconds, Action call)
    {
        Spend(seconds / 4, call);
        List<double> times = Spend(seconds, call);
        times.Sort();
        return times[times.Count / 2];
    }

    /// <summary>
    /// Lower quartiles of the times of several calls in microseconds, made in turns. Other load on the machine then affects all of them,
    /// and few of the times that count.
    /// </summary>
    /// <param name="seconds">Time to spend on each.</param>
    /// <param name="calls">What to time; their tensors are freed after each call.</param>
    /// <param name="ofProcessor">Whether to measure the CPU time of this process, over all its threads, which leaves out what other
    /// programs take. With one thread only: the system counts the time of others in clock ticks.</param>
    internal static double[] Interleaved(double seconds, IReadOnlyList<Action> calls, bool ofProcessor = false)
    {
        Func<Action, double> once = ofProcessor ? OnceOfProcessor : Once;
        List<double>[] times = [.. calls.Select(_ => new List<double>())];
        foreach (Action call in calls)
        {
            Spend(seconds / 8, call);
        }

        Stopwatch total = Stopwatch.StartNew();
        while (total.Elapsed.TotalSeconds < seconds * calls.Count || times[0].Count < FewestCalls)
        {
            for (int i = 0; i < calls.Count; i++)
            {
                times[i].Add(once(calls[i]));
            }
        }

        return [.. times.Select(own => own.Order().ElementAt(own.Count / 4))];
    }

    /// <summary>The shorter of two times of a long call, in microseconds.</summary>
    internal static double BestOfTwo(Action call) => Spend(0, call, fewestCalls: 2).Min();

    /// <summary>Rate in GB/s at which torch reads a large tensor with all threads: the best of several passes.</summary>
    internal static double ReadBandwidth()
    {
        using var scope = NewDisposeScope();
        Tensor large = ones(256 << 20, dtype: ScalarType.Float32);
        return large.numel() * sizeof(float) / 1e3 / Spend(2, () => large.sum()).Min();
    }

    private static List<double> Spend(double seconds, Action call, int fewestCalls = FewestCalls)
    {
        List<double> times = [];
        Stopwatch total = Stopwatch.StartNew();
        while (total.Elapsed.TotalSeconds < seconds || times.Count < fewestCalls)
        {
            times.Add(Once(call));
        }

        return times;
    }

    private static double OnceOfProcessor(Action call)
    {
        using var scope = NewDisposeScope();
        TimeSpan start = Environment.CpuUsage.TotalTime;
        call();
        return (Environment.CpuUsage.TotalTime - start).TotalMicroseconds;
    }

    private static double Once(Action call)
    {
        using var scope = NewDisposeScope();
        long start = Stopwatch.GetTimestamp();
        call();
        return Stopwatch.GetElapsedTime(start).TotalMicroseconds;
    }
}
