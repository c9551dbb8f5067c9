using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>
/// Tests of models that are as their packages make them, without a word of devices: what they make goes to the default one. Tensors of a
/// test are freed after it.
/// </summary>
public abstract class DefaultDeviceFixture(string device)
{
    private DisposeScope _scope = null!;

    protected string DeviceName => device;

    [SetUp]
    public void OpenScope()
    {
        set_default_device(new Device(device));
        _scope = NewDisposeScope();
    }

    [TearDown]
    public void CloseScope()
    {
        _scope.Dispose();
        set_default_device(CPU);
    }
}
