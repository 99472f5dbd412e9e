import torch
from mmrl.models.stream import build_stream
def test_x(shared_policy, make_prompts, picture_task, completion_ids, naive_logps):
    p, = make_prompts([picture_task("a",(56,84))])
    c = completion_ids(0,[3,1,5])
    s = build_stream([(p,x) for x in c], shared_policy.layout, 0)
    a,_ = shared_policy(s, 1.0, False)
    b = torch.cat([naive_logps(shared_policy,p,x,1.0) for x in c])
    print(a,b,(a-b).abs().max())
    n,_ = shared_policy(build_stream([(p,x) for x in c], shared_policy.layout, 0,"naive"), 1.0, False)
    print((n-b).abs().max())
