using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Lengths around the ends of pages, and around those of the page table's capacity, give what a plain model gives.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class PageBoundaryTests(string device)
{
    private const int HeadDim = 64;

    // The table begins with room for 16 pages and doubles.
    private static readonly int[] Pages = [1, 2, 15, 16, 17, 32, 33];

    private static IEnumerable<TestCaseData> Ends =>
        from pages in Pages
        from window in (int[])[0, 1, 31, 32, 33]
        select new TestCaseData(pages, window);

    /// <summary>A past near the end, a block on top, a single token, then back by up to a group and the block again.</summary>
    [TestCaseSource(nameof(Ends))]
    public void Blocks_of_tokens_around_the_end_of_a_page(int pages, int window)
    {
        Random random = new((pages * 100) + window);
        foreach (int shift in (int[])[-2, -1, 0, 1])
        {
            foreach (int count in (int[])[1, 2, 8, 9, 34])
            {
                MustafarOptions options = new()
                {
                    LocalWindow = window,
                    GroupSize = pages > 2 ? 32 : 32 * random.Next(1, 4),
                    SinkTokens = random.Next(3) == 0 ? random.Next(1, 6) : 0,
                    SlidingWindow = random.Next(4) == 0 ? random.Next(1, 200) : null,
                };
                int past = (pages * options.GroupSize) + options.SinkTokens + (random.Next(2) * window) + shift;
                Check(options, past, count, random);
            }
        }
    }

    private void Check(MustafarOptions options, int past, int count, Random random)
    {
        string what = $"{options}, {count} tokens after {past}";
        using var scope = NewDisposeScope();
        manual_seed(random.Next());
        using MustafarCache cache = new(2, new() { NumKvHeads = 1, HeadDim = HeadDim }, ScalarType.Float32, new Device(device), options);
        ReferenceCache reference = new(2, options, HeadDim);
        Tensor prompt = randn(2, 1, past, HeadDim), block = randn(2, 1, count, HeadDim);
        int[] pasts = [past, random.Next(past + 1)];
        reference.Append(prompt, prompt, pasts);
        cache.Append(prompt.to(device), prompt.to(device), pasts);
        Assert.That(cache.CompressedLengths, Is.EqualTo(reference.Compressed), what);
        Step(block, [count, random.Next(count + 1)]);
        Step(block.narrow(2, 0, 1), [1, 1]);
        int back = random.Next(options.GroupSize + 2);
        int[] lengths = [.. reference.Lengths.Select(length => Math.Max(0, length - back))];
        if (!reference.RefusesToTruncate(lengths))
        {
            cache.Truncate(lengths);
            reference.Truncate(lengths);
            Step(block, [count, count]);
        }

        void Step(Tensor x, int[] counts)
        {
            Tensor input = x.to(device);
            Tensor? actual = null;
            Assert.That(() => actual = cache.Forward(input, input, input, 0.125, counts), Throws.Nothing, what);
            Compare.Close(actual!, reference.Forward(x, x, x, 0.125, counts), 1e-5, 1e-5, what);
            Assert.That(cache.Lengths, Is.EqualTo(reference.Lengths), what);
            Assert.That(cache.CompressedLengths, Is.EqualTo(reference.Compressed), what);
        }
    }
}
