namespace Mustafar.Tests.Cache.Sequences;

/// <summary>Whatever is done with the sequences of one cache, each is what a cache of its own would be, in every layer.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class ManySequencesTests(string device)
{
    private const int Operations = 40;

    [Test]
    public void Sequences_do_not_disturb_each_other([Range(1, 24)] int seed, [Values] bool dense)
    {
        using SequenceRun run = new(seed, device, dense);
        try
        {
            for (int i = 0; i < Operations; i++)
            {
                run.Advance();
            }
        }
        catch
        {
            run.Log.ForEach(TestContext.Out.WriteLine);
            throw;
        }
    }
}
