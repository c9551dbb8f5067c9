using Mustafar.Native;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Where pages lie, and who has them.</summary>
public sealed class PagePoolTests
{
    private const int Heads = 3;
    private const long HeadBytes = 1000; // not a multiple of the alignment

    private PagePool _pool = null!;

    [SetUp]
    public void MakePool() => _pool = new PagePool(Heads, [HeadBytes], CPU);

    [TearDown]
    public void FreePool() => _pool.Dispose();

    [Test]
    public void PagesAreAlignedAndApart()
    {
        int[] pages = [.. _pool.Rent(5, 0, -1), .. _pool.Rent(1, 0, -1), .. _pool.Rent(40, 0, -1), .. _pool.Rent(3, 0, -1)];
        Assert.That(pages.Select(page => _pool.Address(page)).All(address => address % NativeConstants.PageAlignment == 0));
        long[] parts = [.. pages.SelectMany(page => Enumerable.Range(0, Heads).Select(h => _pool.Address(page) + (h * _pool.HeadStride()))).Order()];
        Assert.That(parts.Zip(parts.Skip(1)).All(two => two.Second - two.First >= HeadBytes));
    }

    [Test]
    public void APromptsPagesAreRuns()
    {
        int[] pages = _pool.Rent(4 * PagePool.MostSlabPages, 0, -1);
        Assert.That(Runs(pages), Is.EqualTo(4));
        Assert.That(_pool.Bytes, Is.EqualTo(4 * Heads * _pool.HeadStride()));
    }

    [Test]
    public void SequencesThatGrowSideBySideGetRunsOnceTheyAreLong()
    {
        List<int>[] sequences = [[], [], []];
        const int pages = 12 * PagePool.MostSlabPages;
        for (int i = 0; i < pages; i++)
        {
            foreach (List<int> sequence in sequences)
            {
                sequence.AddRange(_pool.Rent(1, sequence.Count, sequence.LastOrDefault(-1)));
            }
        }

        long held = sequences.Length * pages * _pool.HeadStride() / PagePool.MostSlabPages * Heads;
        Assert.Multiple(() =>
        {
            Assert.That(sequences.SelectMany(sequence => sequence), Is.Unique);
            Assert.That(sequences.Select(sequence => Runs([.. sequence.TakeLast(8 * PagePool.MostSlabPages)])), Has.All.LessThanOrEqualTo(9));
            Assert.That(_pool.Bytes, Is.LessThanOrEqualTo(held + (sequences.Length * Heads * _pool.HeadStride())));
        });
    }

    [Test]
    public void ShortSequencesTakeWhatTheyNeed()
    {
        for (int i = 1; i <= 3 * PagePool.MostSlabPages; i++)
        {
            _pool.Rent(1, 0, -1);
            Assert.That(_pool.Bytes, Is.EqualTo(i * _pool.PageBytes));
        }
    }

    [Test]
    public unsafe void PagesMoveOnceWhenASequenceGetsLong([Values] bool byAnOwner)
    {
        List<int> pages = [];
        for (int i = 0; i < PagePool.MostSlabPages - 1; i++)
        {
            pages.AddRange(_pool.Rent(1, i, pages.LastOrDefault(-1)));
            _pool.View(pages[^1], 0).fill_(i + 1);
        }

        _pool.Return(pages[2]);
        Assert.That(_pool.Moves, Is.Zero);
        if (byAnOwner)
        {
            _pool.AddOwner();
        }
        else
        {
            pages.AddRange(_pool.Rent(1, PagePool.MostSlabPages - 1, pages[^1]));
        }

        nint[] addresses = [.. pages.Select(page => _pool.Address(page))];
        Assert.Multiple(() =>
        {
            Assert.That(_pool.Moves, Is.EqualTo(1));
            Assert.That(_pool.Bytes, Is.EqualTo(PagePool.MostSlabPages * _pool.PageBytes));
            for (int i = 0; i < PagePool.MostSlabPages - 1; i++)
            {
                if (i != 2)
                {
                    Assert.That(_pool.View(pages[i], 0).eq(i + 1).all().item<bool>(), $"page {i}");
                }
            }

            Assert.That(_pool.FreePages, Is.EqualTo(byAnOwner ? 2 : 1), "what was free is free");
        });
        _pool.Rent(40, 0, -1);
        Assert.That(_pool.Moves, Is.EqualTo(1));
        Assert.That(pages.Select(page => _pool.Address(page)), Is.EqualTo(addresses));
    }

    [Test]
    public void ReturnedPagesAreUsedAgain()
    {
        int[] pages = _pool.Rent(2 * PagePool.MostSlabPages, 0, -1);
        long bytes = _pool.Bytes;
        Array.ForEach(pages, _pool.Return);
        Assert.That(_pool.Rent(2 * PagePool.MostSlabPages, 0, -1), Is.EquivalentTo(pages));
        Assert.That(_pool.Bytes, Is.EqualTo(bytes));
    }

    [Test]
    public void ASharedPageIsFreeWhenAllHaveReturnedIt()
    {
        int page = _pool.Rent(1, 0, -1)[0];
        _pool.Share(page);
        _pool.Share(page);
        _pool.Return(page);
        _pool.Return(page);
        Assert.That(_pool.Rent(PagePool.MostSlabPages - 1, 0, -1), Does.Not.Contain(page));
        _pool.Return(page);
        Assert.That(_pool.Rent(1, 0, -1)[0], Is.EqualTo(page));
    }

    /// <summary>Native code computes the addresses from the numbers; the table of slabs grows several times here.</summary>
    [Test]
    public unsafe void NativeCodeFindsPagesByTheirNumbers()
    {
        List<int> pages = [];
        for (int i = 0; i < 40; i++)
        {
            pages.AddRange(_pool.Rent(7 * PagePool.MostSlabPages, 0, -1));
            NativeBlocks blocks = _pool.Place(default);
            Assert.That(blocks.SlabCount * blocks.SlabPages, Is.EqualTo(pages.Count));
            Assert.That(pages.All(page =>
                (nint)blocks.Slabs[page / blocks.SlabPages] + (nint)(page % blocks.SlabPages * blocks.PageBytes) == _pool.Address(page)));
        }
    }

    [Test]
    public void PagesOfAnAbandonedOwnerAreUsedAgain()
    {
        int[] pages = _pool.Rent(2 * PagePool.MostSlabPages, 0, -1);
        long bytes = _pool.Bytes;
        _pool.AddOwner();
        Array.ForEach(pages[..3], _pool.Share);
        Assert.That(_pool.BytesOfOwner, Is.EqualTo(bytes / 2));
        _pool.Abandon(pages);
        Assert.That(_pool.BytesOfOwner, Is.EqualTo(bytes));
        Assert.That(_pool.Rent(pages.Length - 3, 0, -1), Is.EquivalentTo(pages[3..]), "all but those that another has");
        Assert.That(_pool.Bytes, Is.EqualTo(bytes));
    }

    // How many stretches of neighbours there are.
    private int Runs(int[] pages) =>
        1 + pages.Zip(pages.Skip(1)).Count(two => _pool.Address(two.Second) - _pool.Address(two.First) != _pool.HeadStride() / PagePool.MostSlabPages);
}
