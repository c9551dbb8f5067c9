using System.Runtime.InteropServices;
using Mustafar.Native;

namespace Mustafar.Tests.Bindings;

[TestFixture]
internal sealed class NativeLoaderTests
{
    [Test]
    public void A_file_that_is_not_there_is_named_with_what_to_do()
    {
        Assert.That(
            () => NativeLoader.Load("/no/such/folder/libmustafar.so"),
            Throws.TypeOf<DllNotFoundException>().With.Message.Contains("/no/such/folder/libmustafar.so: no such file")
                .And.Message.Contains(NativeLoader.PathVariable)
                .And.Message.Contains($"Mustafar.TorchSharp.Native.{RuntimeInformation.RuntimeIdentifier}"));
    }

    [Test]
    public void A_file_that_cannot_be_loaded_is_named_with_the_reason()
    {
        string broken = Path.GetTempFileName();
        try
        {
            File.WriteAllText(broken, "not a library");
            Assert.That(
                () => NativeLoader.Load(broken),
                Throws.TypeOf<DllNotFoundException>().With.Message.Contains(broken).And.Message.Not.Contains("no such file"));
        }
        finally
        {
            File.Delete(broken);
        }
    }

    [Test]
    public void Another_library_is_refused()
    {
        Assert.That(() => NativeLoader.Load("libm.so.6"), Throws.TypeOf<MustafarException>().With.Message.Contains("mustafar_abi_version"));
    }

    [Test]
    public void A_library_of_another_ABI_version_is_refused()
    {
        string root = RepositoryFiles.Root;
        string library = Path.Combine(root, "artifacts", "native", "lib", "libmustafar_other_abi.so");
        Assume.That(library, Does.Exist, "the native library was built elsewhere");
        int expected = (int)Abi.Version;
        Assert.That(
            () => NativeLoader.Load(library),
            Throws.TypeOf<MustafarException>().With.Message.Contains(library)
                .And.Message.Contains($"ABI version {expected + 1}").And.Message.Contains($"needs {expected}"));
    }

    [Test]
    public void A_folder_a_file_or_nothing_finds_the_same_library()
    {
        string folder = TestContext.CurrentContext.TestDirectory;
        nint found = NativeLoader.Load(null);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(found, Is.Not.Zero);
            Assert.That(NativeLoader.Load(folder), Is.EqualTo(found));
            Assert.That(NativeLoader.Load(Path.Combine(folder, NativeLoader.FileName)), Is.EqualTo(found));
        }
    }

    [Test]
    public unsafe void Null_pointers_and_unknown_numbers_give_a_status_and_a_text()
    {
        NativeContext context = new();
        NativeFormat format = new() { HeadDim = 128, DType = 9, Keep = 40 };
        long bytes;
        Refused(NativeMethods.AttentionForward(null, null), "context");
        Refused(NativeMethods.AppendTokens(&context, null), "append");
        Refused(NativeMethods.BlockBytes(&format, &bytes), "dtype");
        Refused(NativeMethods.Prune(&context, &format, 1, 1, 1, null, null, null), "dtype");
        // How a call runs comes before what it works on.
        context.CpuVariant = 77;
        Refused(NativeMethods.Prune(&context, &format, 1, 1, 1, null, null, null), "context.cpu_variant");
        Refused(NativeMethods.KeyFactors(&context, 9, 128, 1, 1, 1, null, null), "context.cpu_variant");
    }

    private static void Refused(int status, string says) =>
        Assert.That(() => NativeCall.Check(status), Throws.ArgumentException.With.Message.Contains(says));
}
