using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>Runs the tests of this namespace on one thread: the model is small, and on a busy machine threads mostly wait.</summary>
[SetUpFixture]
public sealed class OneThread
{
    private int _threads;

    [OneTimeSetUp]
    public void Use()
    {
        _threads = get_num_threads();
        set_num_threads(1);
    }

    [OneTimeTearDown]
    public void Restore() => set_num_threads(_threads);
}
