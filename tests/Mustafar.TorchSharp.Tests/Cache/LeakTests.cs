using System.Runtime.InteropServices;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Long use leaves native and managed memory as it was.</summary>
[TestFixture]
[Explicit("Minutes on a busy machine; MustafarCacheTests has a short run.")]
internal sealed partial class LeakTests
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 1, HeadDim = 64 };
    private static readonly MustafarOptions Options = new() { GroupSize = 32, LocalWindow = 0, SinkTokens = 2 };

    [Test]
    public void Steps_leave_memory_flat()
    {
        using MustafarCache cache = new(1, s_shape, ScalarType.Float32, options: Options);
        using Tensor token = randn(1, 1, 1, 64);
        StaysFlat(100_000, () =>
        {
            if (cache.Length >= 256)
            {
                cache.Clear();
            }

            cache.Append(token, token);
            cache.Attend(token).Dispose();
        });
    }

    [Test]
    public void Lifecycles_leave_memory_flat()
    {
        using Tensor prompt = randn(1, 1, 100, 64);
        StaysFlat(1_000, () =>
        {
            using MustafarCache cache = new(1, s_shape, ScalarType.Float32, options: Options);
            cache.Append(prompt, prompt);
            using MustafarCache fork = cache.Fork([0, 0]);
            cache.Truncate(40);
            cache.Forward(prompt, prompt, prompt).Dispose();
        });
    }

    // A tenth of the steps first, for all that is made once; then what the two halves of the rest leave.
    private static void StaysFlat(int count, Action step)
    {
        Repeat(count / 10, step);
        (long native, long managed, long tensors) = Least(count / 2, step);
        (long nativeAfter, long managedAfter, long tensorsAfter) = Least(count / 2, step);
        TestContext.Out.WriteLine(
            $"{count / 2} times: native heap {nativeAfter - native:+#;-#;0} B, managed heap {managedAfter - managed:+#;-#;0} B, tensors {tensorsAfter - tensors:+#;-#;0}.");
        Assert.That(tensorsAfter, Is.EqualTo(tensors));
        Assert.That(managedAfter - managed, Is.LessThan(256 << 10));
        // The smallest leak, 16 bytes a step, would be 800 KB in half of the steps; a cache has more than 10 KB.
        Assert.That(nativeAfter - native, Is.LessThan(512 << 10));
    }

    // The least that is in use at ten moments: what the runtime compiles in the background comes and goes by megabytes.
    private static (long Native, long Managed, long Tensors) Least(int count, Action step)
    {
        const int Moments = 10;
        (long Native, long Managed, long Tensors) least = (long.MaxValue, long.MaxValue, long.MaxValue);
        for (int i = 0; i < Moments; i++)
        {
            Repeat(count / Moments, step);
            (long native, long managed, long tensors) = Memory();
            least = (Math.Min(least.Native, native), Math.Min(least.Managed, managed), Math.Min(least.Tensors, tensors));
        }

        return least;
    }

    private static void Repeat(int count, Action step)
    {
        for (int i = 0; i < count; i++)
        {
            step();
        }
    }

    private static (long Native, long Managed, long Tensors) Memory()
    {
        for (int i = 0; i < 3; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }

        HeapUsage usage = HeapUse();
        return ((long)(usage.InUse + usage.Mapped), GC.GetTotalMemory(forceFullCollection: true), Tensor.TotalCount);
    }

    // struct mallinfo2 of glibc: what the C heap has handed out, whatever it keeps of the system's memory.
    [StructLayout(LayoutKind.Sequential)]
    private struct HeapUsage
    {
        public nuint Arena, FreeChunks, FastChunks, MappedRegions, Mapped, Unused, FastFree, InUse, Free, Releasable;
    }

    [LibraryImport("libc", EntryPoint = "mallinfo2")]
    private static partial HeapUsage HeapUse();
}
