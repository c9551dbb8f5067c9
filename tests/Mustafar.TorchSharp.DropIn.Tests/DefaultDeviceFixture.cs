using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>Tests of models that are as their packages make them, without a word of devices: what they make goes to the default one.</summary>
public abstract class DefaultDeviceFixture(string device) : TensorFixture
{
    protected string DeviceName => device;

    [SetUp]
    public void UseDevice() => set_default_device(new Device(device));

    [TearDown]
    public void UseCpu() => set_default_device(CPU);
}
