
namespace Mustafar.Tests.Storage;

[TestFixture]
internal sealed class AtomicFileTests
{
    [Test]
    public void A_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it()
    {
        using TemporaryDirectory directory = new();
        string path = directory.File("file");
        Assert.That(() => Fail(path), Throws.TypeOf<IOException>());
        Assert.That(Directory.GetFileSystemEntries(directory.Path), Is.Empty);
        AtomicFile.Write(path, stream => stream.WriteByte(1));
        Assert.That(() => Fail(path), Throws.TypeOf<IOException>());
        AtomicFile.Write(directory.File("other"), stream => stream.WriteByte(3));
        Assert.That(Directory.GetFileSystemEntries(directory.Path), Is.EquivalentTo(new[] { path, directory.File("other") }));
        Assert.That(File.ReadAllBytes(path), Is.EqualTo(new byte[] { 1 }));
        AtomicFile.Write(path, stream => stream.WriteByte(2));
        Assert.That(File.ReadAllBytes(path), Is.EqualTo(new byte[] { 2 }));
    }

    [Test]
    public void A_place_where_no_file_can_be_is_refused_and_nothing_is_left()
    {
        using TemporaryDirectory directory = new();
        Directory.CreateDirectory(directory.File("taken"));
        using MustafarCache cache = new(1, new() { NumKvHeads = 1, HeadDim = 64 }, TorchSharp.torch.ScalarType.Float32);
        Assert.That(() => cache.Save(directory.File("taken"), "model"), Throws.InstanceOf<IOException>().Or.InstanceOf<UnauthorizedAccessException>());
        Assert.That(() => cache.Save(directory.File("none/file"), "model"), Throws.InstanceOf<DirectoryNotFoundException>());
        Assert.That(Directory.GetFileSystemEntries(directory.Path), Is.EqualTo(new[] { directory.File("taken") }));
    }

    private static void Fail(string path) => AtomicFile.Write(path, stream =>
    {
        stream.Write(new byte[100]);
        throw new IOException("the disk is full");
    });
}
