using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests;

/// <summary>Tests whose tensors are freed after each of them.</summary>
public abstract class TensorFixture
{
    private DisposeScope _scope = null!;

    [SetUp]
    public void OpenScope() => _scope = NewDisposeScope();

    [TearDown]
    public void CloseScope() => _scope.Dispose();
}
