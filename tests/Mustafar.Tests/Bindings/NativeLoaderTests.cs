using Mustafar.BindingGenerator;
using Mustafar.Native;

namespace Mustafar.Tests.Bindings;

[TestFixture]
internal sealed class NativeLoaderTests
{
    [Test]
    public void A_failure_lists_each_place_why_it_failed_and_what_to_do()
    {
        string broken = Path.GetTempFileName();
        try
        {
            File.WriteAllText(broken, "not a library");
            Assert.That(
                () => NativeLoader.Load(["/no/such/folder/libmustafar.so", broken]),
                Throws.TypeOf<DllNotFoundException>().With.Message.Contains("/no/such/folder/libmustafar.so: no such file")
                    .And.Message.Contains(broken).And.Message.Contains(NativeLoader.PathVariable));
        }
        finally
        {
            File.Delete(broken);
        }
    }

    [Test]
    public void Another_library_is_refused()
    {
        Assert.That(() => NativeLoader.Load(["libm.so.6"]), Throws.TypeOf<MustafarException>().With.Message.Contains("mustafar_abi_version"));
    }

    [Test]
    public void A_library_of_another_ABI_version_is_refused()
    {
        string root = GeneratorCommand.FindRoot(TestContext.CurrentContext.TestDirectory);
        string library = Path.Combine(root, "artifacts", "native", "lib", "libmustafar_other_abi.so");
        Assume.That(library, Does.Exist, "the native library was built elsewhere");
        int expected = (int)Abi.Version;
        Assert.That(
            () => NativeLoader.Load([library]),
            Throws.TypeOf<MustafarException>().With.Message.Contains(library)
                .And.Message.Contains($"ABI version {expected + 1}").And.Message.Contains($"needs {expected}"));
    }

    [Test]
    public void A_path_that_cannot_be_loaded_does_not_hide_the_next()
    {
        string loaded = NativeLoader.Candidates().First(File.Exists);
        Assert.That(NativeLoader.Load(["/no/such/folder/libmustafar.so", loaded]), Is.Not.Zero);
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
        Refused(NativeMethods.Prune(&context, &format, 1, 1, 1, null, null), "dtype");
        // How a call runs comes before what it works on.
        context.CpuVariant = 77;
        Refused(NativeMethods.Prune(&context, &format, 1, 1, 1, null, null), "context.cpu_variant");
        Refused(NativeMethods.KeyFactors(&context, 9, 128, 1, 1, 1, null, null), "context.cpu_variant");
    }

    private static void Refused(int status, string says) =>
        Assert.That(() => NativeCall.Check(status), Throws.ArgumentException.With.Message.Contains(says));
}
