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

    /// <summary>Median times of two calls in microseconds, which take turns so that both meet the same state of the machine.</summary>
    /// <param name="seconds">Time to spend.</param>
    /// <param name="one">What to time; its tensors are freed after each call.</param>
    /// <param name="other">As <paramref name="one"/>.</param>
    internal static (double One, double Other) Medians(double seconds, Action one, Action other)
    {
        List<double> times = [], otherTimes = [];
        foreach (double share in (double[])[seconds / 4, seconds])
        {
            times.Clear();
            otherTimes.Clear();
            Stopwatch total = Stopwatch.StartNew();
            while (total.Elapsed.TotalSeconds < share || times.Count < FewestCalls)
            {
                times.Add(Once(one));
                otherTimes.Add(Once(other));
            }
        }

        times.Sort();
        otherTimes.Sort();
        return (times[times.Count / 2], otherTimes[otherTimes.Count / 2]);
    }

    /// <summary>The shorter of two times of a long call in microseconds.</summary>
    internal static double BestOfTwo(Action call) => Spend(0, call, fewestCalls: 2).Min();

    /// <summary>Rate in GB/s at which torch reads a large tensor with all its threads, the best of several passes.</summary>
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

    private static double Once(Action call)
    {
        using var scope = NewDisposeScope();
        long start = Stopwatch.GetTimestamp();
        call();
        return Stopwatch.GetElapsedTime(start).TotalMicroseconds;
    }
}
