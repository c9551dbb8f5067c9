using Mustafar.Models.Generation;
using Mustafar.Tests.Llama;

namespace Mustafar.Tests.Evaluation;

/// <summary>A tiny checkpoint and its model, for all tests of a fixture.</summary>
public abstract class TinyLanguageFixture
{
    private readonly TemporaryDirectory _model = new TemporaryDirectory().WithTinyCheckpoint();

    /// <summary>Where the checkpoint is.</summary>
    private protected string Checkpoint => _model.Path;

    private protected LanguageModel Language { get; private set; } = null!;

    [OneTimeSetUp]
    public void Load() => Language = LanguageModel.Load(Checkpoint);

    [OneTimeTearDown]
    public void Unload()
    {
        Language.Dispose();
        _model.Dispose();
    }
}
