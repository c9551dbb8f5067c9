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
    public void MakePool() => _pool = new PagePool(Heads, HeadBytes, CPU);

    [TearDown]
    public void FreePool() => _pool.Dispose();

    [Test]
    public void PagesAreAlignedAndApart()
    {
        nint[] pages = [.. _pool.Rent(5, 0, 0), .. _pool.Rent(1, 0, 0), .. _pool.Rent(40, 0, 0), .. _pool.Rent(3, 0, 0)];
        Assert.That(pages.All(page => page % NativeConstants.PageAlignment == 0));
        long[] parts = [.. pages.SelectMany(page => Enumerable.Range(0, Heads).Select(h => page + (h * _pool.HeadStride))).Order()];
        Assert.That(parts.Zip(parts.Skip(1)).All(two => two.Second - two.First >= HeadBytes));
        Assert.That(_pool.PageBytes, Is.EqualTo(((Heads - 1) * _pool.HeadStride) + HeadBytes + NativeConstants.PagePadding));
    }

    [Test]
    public void APromptsPagesAreRuns()
    {
        nint[] pages = _pool.Rent(4 * PagePool.SlabPages, 0, 0);
        Assert.That(Runs(pages), Is.EqualTo(4));
        Assert.That(_pool.Bytes, Is.EqualTo(4 * Heads * _pool.HeadStride));
    }

    [Test]
    public void SequencesThatGrowSideBySideGetRunsOnceTheyAreLong()
    {
        List<nint>[] sequences = [[], [], []];
        const int pages = 12 * PagePool.SlabPages;
        for (int i = 0; i < pages; i++)
        {
            foreach (List<nint> sequence in sequences)
            {
                sequence.AddRange(_pool.Rent(1, sequence.Count, sequence.LastOrDefault()));
            }
        }

        long held = sequences.Length * pages * _pool.HeadStride / PagePool.SlabPages * Heads;
        Assert.Multiple(() =>
        {
            Assert.That(sequences.SelectMany(sequence => sequence), Is.Unique);
            Assert.That(sequences.Select(sequence => Runs([.. sequence.TakeLast(8 * PagePool.SlabPages)])), Has.All.LessThanOrEqualTo(9));
            Assert.That(_pool.Bytes, Is.LessThanOrEqualTo(held + (sequences.Length * Heads * _pool.HeadStride)));
        });
    }

    [Test]
    public void ShortSequencesShareASlab()
    {
        for (int i = 0; i < PagePool.SlabPages; i++)
        {
            _pool.Rent(1, 0, 0);
        }

        Assert.That(_pool.Bytes, Is.EqualTo(Heads * _pool.HeadStride));
    }

    [Test]
    public void ReturnedPagesAreUsedAgain()
    {
        nint[] pages = _pool.Rent(2 * PagePool.SlabPages, 0, 0);
        long bytes = _pool.Bytes;
        Array.ForEach(pages, _pool.Return);
        Assert.That(_pool.Rent(2 * PagePool.SlabPages, 0, 0), Is.EquivalentTo(pages));
        Assert.That(_pool.Bytes, Is.EqualTo(bytes));
    }

    [Test]
    public void ASharedPageIsFreeWhenAllHaveReturnedIt()
    {
        nint page = _pool.Rent(1, 0, 0)[0];
        _pool.Share(page);
        _pool.Share(page);
        _pool.Return(page);
        _pool.Return(page);
        Assert.That(_pool.Rent(PagePool.SlabPages - 1, 0, 0), Does.Not.Contain(page));
        _pool.Return(page);
        Assert.That(_pool.Rent(1, 0, 0)[0], Is.EqualTo(page));
    }

    [Test]
    public void PagesOfAnAbandonedOwnerAreUsedAgain()
    {
        nint[] pages = _pool.Rent(2 * PagePool.SlabPages, 0, 0);
        long bytes = _pool.Bytes;
        _pool.AddOwner();
        Array.ForEach(pages[..3], _pool.Share);
        Assert.That(_pool.BytesOfOwner, Is.EqualTo(bytes / 2));
        _pool.Abandon(pages);
        Assert.That(_pool.BytesOfOwner, Is.EqualTo(bytes));
        Assert.That(_pool.Rent(pages.Length - 3, 0, 0), Is.EquivalentTo(pages[3..]), "all but those that another has");
        Assert.That(_pool.Bytes, Is.EqualTo(bytes));
    }

    // How many stretches of neighbours there are.
    private int Runs(nint[] pages) =>
        1 + pages.Zip(pages.Skip(1)).Count(two => two.Second - two.First != _pool.HeadStride / PagePool.SlabPages);
}
